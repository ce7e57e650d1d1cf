"""StripedHyena 2: embedding, blocks, norm, logits. Token ids in, logits out; knows nothing of DNA or files."""

# B batch, L length, D width, V vocabulary

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import Backend
from sh2.config import FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.fp8 import choose_precision
from sh2.initialize import initialize
from sh2.joined import added, fed, gated, mixed, normed
from sh2.layers import GatedMLP, RMSNorm, linear
from sh2.mixers import MIXERS, Attention, AttentionState, Backed, HyenaFir, HyenaLI, HyenaSE, KVDtype, MixerState
from sh2.packed import PackedLinear
from sh2.recompute import Recompute
from sh2.rerun import run_blocks, run_half
from sh2.state import BlockState, ModelState, reset


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    recompute: Recompute = Recompute.NONE  # set by `StripedHyena2.use_recompute`

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width, config.norm_eps)
        self.mixer = MIXERS[config.kinds[layer]](config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.mixes_twice = config.feed_forward is FeedForward.HYENA_SE
        self.feed_forward: nn.Module = (
            HyenaSE(config)
            if self.mixes_twice
            else GatedMLP(config.width, config.mlp_width, config.activation_of(layer))
        )

    def forward(
        self, x_BLD: Tensor, state: BlockState | None = None, *, in_place: bool = False, stateless: bool = False
    ) -> tuple[Tensor, BlockState | None]:
        """Apply the block.

        Args:
            in_place: x is one token, and the state itself moves on.
            stateless: x is whole sequences from their start, and no state comes of them.
        """
        if stateless:
            x_BLD = run_half(self.mix, x_BLD, self.recompute, by_token=False)
            return run_half(self.feed, x_BLD, self.recompute, by_token=not self.mixes_twice), None
        if in_place:
            assert state is not None
            return self._step(x_BLD, state)
        mixer_state: MixerState | None
        feed_forward_state: MixerState | None
        mixer_state, feed_forward_state = state or (None, None)
        assert isinstance(self.mixer, HyenaFir | HyenaLI | Attention)
        x_BLD, mixer_state = mixed(self.mixer_norm, self.mixer, x_BLD, mixer_state)
        if isinstance(self.feed_forward, HyenaSE):
            x_BLD, feed_forward_state = mixed(self.feed_forward_norm, self.feed_forward, x_BLD, feed_forward_state)
            return x_BLD, BlockState(mixer_state, feed_forward_state)
        assert isinstance(self.feed_forward, GatedMLP)
        return fed(self.feed_forward_norm, self.feed_forward, x_BLD), BlockState(mixer_state, None)

    def mix(self, x_BLD: Tensor) -> Tensor:
        """The first half, over whole sequences from their start."""
        return x_BLD + self.mixer(self.mixer_norm(x_BLD))[0]

    def feed(self, x_BLD: Tensor) -> Tensor:
        """The second half, likewise."""
        y_BLD = self.feed_forward(self.feed_forward_norm(x_BLD))
        return x_BLD + (y_BLD[0] if self.mixes_twice else y_BLD)

    def _step(self, x_B1D: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Apply the block to one token; the state itself moves on, but keys and values that do not lie in slots."""
        x_B1D, mixer_state = _mix_step(self.mixer_norm, self.mixer, x_B1D, state.mixer)
        if state.feed_forward is not None:
            x_B1D, feed_forward_state = _mix_step(self.feed_forward_norm, self.feed_forward, x_B1D, state.feed_forward)
            return x_B1D, BlockState(mixer_state, feed_forward_state)
        assert isinstance(self.feed_forward, GatedMLP)
        h_B1I = gated(self.feed_forward_norm, self.feed_forward, x_B1D)
        x_B1D = added(x_B1D, self.feed_forward.down, h_B1I, self.feed_forward_norm.backend)
        return x_B1D, BlockState(mixer_state, None)


def _mix_step(norm: RMSNorm, mixer: nn.Module, x_B1D: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
    """x + mixer(norm(x)) of one token."""
    if isinstance(state, AttentionState):
        y_B1D, state = mixer(norm(x_B1D), state)
        return x_B1D + y_B1D, state
    assert isinstance(mixer, HyenaFir | HyenaLI | Attention)
    advance: Callable[..., Tensor] = mixer.advance
    u_BD = advance(normed(norm, mixer.input, x_B1D)[:, 0], state)
    return added(x_B1D, mixer.output, u_BD[:, None], norm.backend), state


class StripedHyena2(nn.Module):
    """A StripedHyena 2 language model over bytes.

    The model is one causal map `(ids, state) -> (logits, state)`: a whole sequence, chunks of it and single tokens are
    the same call with other lengths. Weights are initialised from `seed`; build under `torch.device("meta")` to leave
    them to a checkpoint.
    """

    recompute: Recompute = Recompute.NONE  # of `whole`, a choice of the machine's

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        # not `skip_init`: normal numbers, even of the meta device, load torch's compiler
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.unembedding = None if config.tied_embeddings else linear(config.width, config.vocab_size, bias=False)
        if not self.embedding.weight.is_meta:
            initialize(self, config, seed)

    def use_backend(self, backend: str) -> Self:
        """Choose what runs the hyena operators; call it when the model is where and in the dtype that it will run.

        Args:
            backend: `auto` takes the Triton kernels on a GPU where they can run, and plain torch elsewhere; `triton`
                and `reference` (plain torch) take nothing else. No configuration or checkpoint keeps it.

        Raises:
            Sh2Error: there is no such backend, or the Triton kernels cannot run this model here (of one without values,
                that is seen when it runs).
        """
        if backend not in list(Backend):
            raise Sh2Error(f"unknown backend `{backend}`").hint(f"use {', '.join(Backend)}")
        chosen = Backend(backend)
        mixers = [module for module in self.modules() if isinstance(module, Backed)]
        if chosen is Backend.TRITON and not self.embedding.weight.is_meta:
            # mixers of a kind are alike: one answers for all, if its weights do not wait in the host's memory
            home = self.embedding.weight
            for mixer in {type(mixer): mixer for mixer in mixers if mixer.device.type == home.device.type}.values():
                mixer.check_backend(chosen, home.dtype)
        for mixer in mixers:
            mixer.backend = chosen
        for layer in self.modules():
            if isinstance(layer, RMSNorm | PackedLinear):  # whose kernels are for some calls alone
                layer.backend = Backend.REFERENCE if chosen is Backend.REFERENCE else Backend.AUTO
        return self

    def use_precision(self, precision: str) -> Self:
        """Choose in which numbers the model runs; call it when the model is where it will run.

        Args:
            precision: `bf16` and `fp32` cast the model and run all of it so. `fp8` and `fp8-emulated` run the input
                projections of the hyena mixers in FP8, and the rest in the model's dtype: on hardware that has it, or
                rounded alike on any device. `auto` takes one of these two, the first where it can, if the model was
                trained so; if not, all of it runs in its dtype. `fp8-weights` is `auto` for a model that was loaded
                with its weights in FP8, which runs in nothing else. `sh2.fp8.precision_of` tells what was taken.

        Raises:
            Sh2Error: there is no such precision, or the device has no FP8 products.
        """
        config = self.config
        choose_precision(self, precision, width=config.width, trained_in_fp8=config.fp8_input_projections)
        return self

    def use_kv_dtype(self, kv_dtype: str) -> Self:
        """Choose in which numbers attention keeps the keys and values of the tokens seen.

        Args:
            kv_dtype: `auto` keeps the model's own; `fp8` keeps E4M3 codes with a scale for each token and head, in half
                the memory of bfloat16, but while gradients are kept. No configuration or checkpoint keeps the choice.

        Raises:
            Sh2Error: there is no such choice.
        """
        if kv_dtype not in list(KVDtype):
            raise Sh2Error(f"unknown kv_dtype `{kv_dtype}`").hint(f"use {', '.join(KVDtype)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.kv_dtype = KVDtype(kv_dtype)
        return self

    def use_recompute(self, recompute: str) -> Self:
        """Choose how much of `whole` its backward makes again instead of keeping: a `Recompute`.

        Raises:
            Sh2Error: there is no such choice.
        """
        if recompute not in list(Recompute):
            raise Sh2Error(f"unknown recompute `{recompute}`").hint(f"use {', '.join(Recompute)}")
        self.recompute = Recompute(recompute)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recompute = self.recompute
        return self

    def forward(
        self, ids_BL: Tensor, state: ModelState | None = None, *, document_starts_BL: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Predict the next token after every token.

        Args:
            ids_BL: token ids, any integer dtype, L at least 1.
            state: what the last call on these rows returned; None starts sequences.
            document_starts_BL: bool, True where a new document begins: nothing before it is seen from there on. Their
                places decide what is run: a tensor on the host spares waiting for a GPU.

        Returns:
            logits_BLV in the model's dtype, and the state that continues the sequences.

        Raises:
            Sh2Error: the ids are not whole numbers of the vocabulary [B, L], the state is that of another batch, or
                the document starts are not of these ids.
        """
        x_BLD, state = self.hidden(ids_BL, state, document_starts_BL=document_starts_BL)
        return self.logits(x_BLD), state

    def hidden(
        self, ids_BL: Tensor, state: ModelState | None = None, *, document_starts_BL: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Like `forward`, up to the last block's output x_BLD: `logits` does the rest."""
        self._check(ids_BL, state)
        if document_starts_BL is None:
            return self._piece(ids_BL, state)
        if document_starts_BL.shape != ids_BL.shape:
            raise Sh2Error(
                f"document starts of shape {list(document_starts_BL.shape)} are not of token ids {list(ids_BL.shape)}"
            )
        # documents are cut where they meet, and the state of the rows where one begins is reset
        borders = document_starts_BL.any(dim=0).nonzero()[:, 0].tolist()
        outputs: list[Tensor] = []
        for start, stop in zip(sorted({0, *borders}), [*sorted({*borders} - {0}), ids_BL.shape[1]], strict=True):
            if state is not None:
                state = reset(state, document_starts_BL[:, start].to(ids_BL.device, non_blocking=True))
            x_BLD, state = self._piece(ids_BL[:, start:stop], state)
            outputs.append(x_BLD)
        assert state is not None
        return torch.cat(outputs, dim=1), state

    def whole(self, ids_BL: Tensor) -> Tensor:
        """Like `hidden` for sequences from their start, without a state to go on from: x_BLD, as training needs it."""
        self._check(ids_BL, None)
        return run_blocks(list(self.blocks), self._embed(ids_BL), self.recompute)

    @torch.no_grad()
    def step(self, ids_B: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Predict the next token after one more: `forward` of one token without gradients, in the memory of the state.

        Args:
            ids_B: the next token of every row.
            state: what came before; it is used up, and must not be used again. To continue a state more than once,
                `sh2.state.select` rows of it first.

        Returns:
            logits_BV in the model's dtype, and the state that continues the sequences.

        Raises:
            Sh2Error: as `forward`.
        """
        ids_B1 = ids_B[:, None]
        self._check(ids_B1, state)
        x_B1D, state = self._piece(ids_B1, state, in_place=True)
        return self.logits(x_B1D)[:, 0], state

    def _check(self, ids_BL: Tensor, state: ModelState | None) -> None:
        """Refuse what would be answered wrongly or fail deep inside."""
        if not isinstance(ids_BL, Tensor) or ids_BL.ndim != 2 or 0 in ids_BL.shape:
            shape = list(ids_BL.shape) if isinstance(ids_BL, Tensor) else f"a {type(ids_BL).__name__}"
            raise Sh2Error(f"token ids must be a tensor [batch, length] with neither empty, not {shape}")
        if ids_BL.dtype.is_floating_point or ids_BL.dtype.is_complex or ids_BL.dtype is torch.bool:
            raise Sh2Error(f"token ids must be whole numbers, not {ids_BL.dtype}")
        # on an accelerator, looking at the values would make every call wait for it; a compiled graph has none yet
        if ids_BL.device.type == "cpu" and not torch.compiler.is_compiling():
            least, most = int(ids_BL.min()), int(ids_BL.max())
            if not 0 <= least <= most < self.config.vocab_size:
                raise Sh2Error(f"token ids must lie in 0..{self.config.vocab_size - 1}, not {least}..{most}")
        if state is not None and (rows := state[0].mixer[0].shape[0]) != ids_BL.shape[0]:
            raise Sh2Error(f"the state belongs to {rows} sequences, the token ids to {ids_BL.shape[0]}")

    def _piece(self, ids_BL: Tensor, state: ModelState | None, *, in_place: bool = False) -> tuple[Tensor, ModelState]:
        x_BLD = self._embed(ids_BL)
        new_state: list[BlockState] = []
        for layer, block in enumerate(self.blocks):
            x_BLD, block_state = block(x_BLD, None if state is None else state[layer], in_place=in_place)
            new_state.append(block_state)
        return x_BLD, tuple(new_state)

    def _embed(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.embedding(ids_BL.long())
        # under autocast the stream is as narrow as what is added to it: half the memory, and half of a norm's traffic
        device = x_BLD.device.type
        return x_BLD.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x_BLD

    def logits(self, x_BLD: Tensor) -> Tensor:
        """The last norm and the unembedding: logits_BLV of hidden states x_BLD."""
        weight_VD = self.embedding.weight if self.unembedding is None else self.unembedding.weight
        return F.linear(self.norm(x_BLD), weight_VD)
