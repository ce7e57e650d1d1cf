"""Context-parallel runs of small models, in a module that their processes can import, and the same in one process."""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from kernels import Backend, hyena_li_piece
from sh2.config import DEFAULT_WINDOW, FeedForward, ModelConfig
from sh2.model import StripedHyena2
from sh2.parallel import modal, parallelise
from sh2.parallel.exchange import Ranks
from sh2.parallel.sharding import Shards
from sh2.sharing import Sharding
from sh2.train.loss import loss_sums

LENGTH = 384
STRIPED = ModelConfig(
    width=32, layout="SML*", num_heads=8, mlp_width=48, se_groups=8, mr_groups=16, mr_taps=20, mr_window=DEFAULT_WINDOW
)
CONFIGS = {
    "striped": STRIPED,
    "grouped heads, biases, untied, hyena_se feed-forward": replace(
        STRIPED,
        width=64,
        layout="L*M",
        num_heads=16,
        queries_per_kv_head=2,
        input_bias=True,
        featurizer_bias=True,
        tied_embeddings=False,
        se_skip=True,
        feed_forward=FeedForward.HYENA_SE,
        rotary_interpolation=4.0,
    ),
    "featurizers of one tap": replace(STRIPED, featurizer_taps=1, se_taps=1),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and how its sequences are shared."""

    ranks: int
    convolution: str
    attention: str = "ring"
    sharding: str = "contiguous"
    model: str = "striped"
    recompute: bool = False  # the blocks' activations, in backward
    compiled: bool = False  # the blocks

    def __str__(self) -> str:
        words = [str(self.ranks), self.convolution, self.attention, self.sharding, self.model]
        return "-".join(words + ["recompute"] * self.recompute + ["compiled"] * self.compiled)


def build(name: str) -> StripedHyena2:
    """A model whose every parameter matters: nothing is 0 or 1 as initialisation leaves it."""
    model = StripedHyena2(CONFIGS[name], seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "skip", "pole_shift", "scale")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Tokens [2, L+1] and the weights of predicting them [2, L], of which some are 0 and the rest uneven."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, LENGTH, generator=generator)
    return torch.randint(0, 512, (2, LENGTH + 1), generator=generator), weights * (weights > 0.2)


def in_one_process(name: str, device: str = "cpu") -> dict[str, Tensor]:
    """Logits, loss and gradients of whole sequences."""
    model = build(name).to(device)
    tokens, weights = (tensor.to(device) for tensor in batch())
    logits, _ = model(tokens[:, :-1])
    loss = loss_sums(logits, tokens[:, 1:], weights).weighted_nats / weights.sum()
    loss.backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return {"logits": logits.detach().cpu(), "loss": loss.detach().cpu()} | gradients


def in_many(case: Case, device: str) -> dict[str, Tensor]:
    """The same as every process of a group sees it."""
    model = build(case.model).to(device)
    context = parallelise(model, sharding=case.sharding, convolution=case.convolution, attention=case.attention)
    if case.recompute:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if case.compiled:
        for block in model.blocks:
            block.compile(dynamic=False, backend="aot_eager")
    tokens, weights = (tensor.to(device) for tensor in batch())
    logits, state = model(context.shard(tokens[:, :-1]))
    assert state == ()
    assert logits.shape[1] == LENGTH // case.ranks
    sums = loss_sums(logits, context.shard(tokens[:, 1:]), context.shard(weights))
    (sums.weighted_nats / weights.sum()).backward()
    context.sum_gradients(model)
    assert context.sum(sums.bases) == (weights > 0).sum()
    loss = context.sum(sums.weighted_nats) / weights.sum()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return {"logits": context.gather(logits).cpu(), "loss": loss.cpu()} | gradients


def run_cases(cases: Sequence[Case], folder: Path, device: str) -> None:
    """Run cases one after the other; what the last rank sees of each goes into a file of its name."""
    for case in cases:
        result = in_many(case, device)
        if dist.get_rank() == case.ranks - 1:
            torch.save(result, folder / f"{case}.pt")


def over_data_and_context(folder: Path) -> None:
    """Four processes: two share each sequence, two each have one, and FSDP has a quarter of the weights on each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    model = build("striped")
    context = parallelise(model, mesh["context"].get_group(), sharding="zigzag")
    everyone = mesh._flatten("everyone")
    for module in (*model.blocks, model):
        fully_shard(module, mesh=everyone)
        module.set_gradient_divide_factor(1.0)  # the loss is a sum
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    tokens, weights = batch()
    mine = slice(mesh["data"].get_local_rank(), mesh["data"].get_local_rank() + 1)
    logits, _ = model(context.shard(tokens[mine, :-1]))
    sums = loss_sums(logits, context.shard(tokens[mine, 1:]), context.shard(weights[mine]))
    (sums.weighted_nats / weights.sum()).backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(gradients, folder / "gradients.pt")


def modal_inputs() -> list[Tensor]:
    """A projection [2, 24, 3 D], the filters of Hyena-LI, and the gradient of its outputs, float64."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 24, 9), (9, 3), (9,), (3, 2), (3, 2), (3,), (2, 24, 3)]
    z, featurizer, bias, log_poles, *others = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return [z, featurizer, bias, -log_poles.exp() / 8, *others]


def modal_kernels_in_many(folder: Path) -> None:
    """Outputs and gradients of Hyena-LI's kernels over every rank's pieces, under both shardings."""
    ranks = dist.get_world_size()
    for sharding in Sharding:
        shards = Shards(rank=dist.get_rank(), ranks=ranks, sharding=sharding)
        z, *filters, dy = (tensor.float() for tensor in modal_inputs())
        leaves = [shards.take(z), *filters]
        leaves = [tensor.requires_grad_() for tensor in leaves]
        operator = partial(hyena_li_piece, backend=Backend.TRITON)
        y = modal.by_state(Ranks(dist.group.WORLD, shards), operator, tuple(leaves[1:]), leaves[0])
        gradients = torch.autograd.grad(y, leaves, shards.take(dy))
        torch.save([y.detach(), *gradients], folder / f"{sharding} {shards.rank}.pt")


def host_runs_ahead() -> None:
    """Ask for forward and backward of every convolutional mixer while the GPU is kept busy: the host waits for none."""
    device = torch.device("cuda", dist.get_rank())
    for letter in "SML":
        with device:
            model = StripedHyena2(replace(STRIPED, layout=letter)).bfloat16()
        parallelise(model)
        mixer = model.blocks[0].mixer
        x = torch.randn(1, 512, STRIPED.width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2):  # compiles the kernels, connects the processes, takes memory
            mixer(x)[0].sum().backward()
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda._sleep(4_000_000_000)
        busy = torch.cuda.Event()
        busy.record()
        mixer(x)[0].sum().backward()
        assert not busy.query(), letter
        torch.cuda.synchronize()


def in_processes(ranks: int, work: Callable[..., None], *arguments: object, folder: Path, device: str = "cpu") -> None:
    """Call `work(*arguments)` in every process of a group.

    Raises:
        AssertionError: one of them failed; it has told why on stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [
        context.Process(target=_enter, args=(rank, ranks, folder / f"{ranks} ranks", device, work, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running and all(process.exitcode in (None, 0) for process in processes):
        # one that failed leaves the others waiting for it
        for sentinel in wait(list(running)):
            del running[sentinel]
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks


def _enter(
    rank: int, ranks: int, meeting: Path, device: str, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()
