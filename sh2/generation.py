"""Generation: prompts in, sampled tokens out, one state carried from token to token."""

# B rows (samples of prompts), V vocabulary

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.chunks import read
from sh2.constraints import Constraints, History
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.sampling import Sampling, choose, restrict
from sh2.scoring import batches_of_equal_length, log_probs_of
from sh2.state import ModelState, join, select
from sh2.tokens import EOD, Tokens, as_rows, to_batch

_SEEDS = 1 << 63


class End(StrEnum):
    """What ended a sample."""

    LENGTH = "length"  # it has all the tokens asked for
    EOD = "eod"  # the model ended the document
    MOTIF = "motif"  # it wrote the motif to stop at
    BANNED = "banned"  # whatever it had written next was forbidden


_ENDS = tuple(End)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One sampled continuation."""

    prompt: int  # which prompt, from 0
    sample: int  # which sample of it, from 0
    ids: NDArray[np.int64]  # the new tokens, without the prompt and without a closing EOD
    log_probs: NDArray[np.float32]  # of each new token, under the model itself: before temperature and filters
    end: End

    @property
    def text(self) -> str:
        """The new tokens as characters, one a token."""
        return "".join(map(chr, self.ids.tolist()))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """What to sample, checked once.

    Raises:
        Sh2Error: a setting is out of range.
    """

    length: int  # new tokens, at most
    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # this and the next two as in `Sampling`
    top_p: float = 1.0
    min_p: float = 0.0
    alphabet: str | bytes | None = None  # characters that may be chosen (EOD besides, if it stops); None is every token
    stop_at_eod: bool = True  # end a sample when the model ends the document; otherwise EOD is a token like others
    forbid: Sequence[str] = ()  # this and the next two as in `Constraints`
    no_repeat: int | None = None
    stop_at: str | None = None
    samples: int = 1  # continuations of each prompt
    seed: int = 0
    max_rows: int = 64  # samples that are decoded together, at most
    chunk: int = 8192  # tokens of a prompt that are read at once, at most

    def __post_init__(self) -> None:
        for name in ("length", "samples", "max_rows", "chunk"):
            if getattr(self, name) < 1:
                raise Sh2Error(f"{name} must be at least 1, not {getattr(self, name)}")
        if not -_SEEDS <= self.seed < _SEEDS:
            raise Sh2Error(f"seed must lie in {-_SEEDS}..{_SEEDS - 1}, not {self.seed}")
        if self.alphabet is not None and not self.alphabet:
            raise Sh2Error("the alphabet to sample from is empty")
        self.sampling()
        self.constraints()

    def sampling(self) -> Sampling:
        """How a token is chosen."""
        letters = self.alphabet.encode() if isinstance(self.alphabet, str) else self.alphabet
        allowed = None if letters is None else tuple(sorted({*letters, *([EOD] if self.stop_at_eod else [])}))
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, alphabet=allowed
        )

    def constraints(self) -> Constraints:
        """What the written tokens must keep to."""
        return Constraints(forbid=self.forbid, no_repeat=self.no_repeat, stop_at=self.stop_at)


def generate(
    model: StripedHyena2,
    prompts: Sequence[Tokens],
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    alphabet: str | bytes | None = None,
    stop_at_eod: bool = True,
    forbid: Sequence[str] = (),
    no_repeat: int | None = None,
    stop_at: str | None = None,
    samples: int = 1,
    seed: int = 0,
    max_rows: int = 64,
    chunk: int = 8192,
) -> list[Generation]:
    """Sample continuations of prompts.

    A sample depends on its prompt, the seed and its own number alone: prompts of any lengths run in one batch and give
    the tokens that each would give by itself. Every prompt is read once a batch, whatever the number of samples.

    Args:
        prompts: text, bytes or token ids, in any mix; an empty one starts a document. The rest is as in
            `GenerationOptions`.

    Returns:
        The samples of the first prompt, then of the second, and so on.

    Raises:
        Sh2Error: a setting is out of range, or a prompt has an id outside the vocabulary.
    """
    options = GenerationOptions(
        length=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        alphabet=alphabet,
        stop_at_eod=stop_at_eod,
        forbid=forbid,
        no_repeat=no_repeat,
        stop_at=stop_at,
        samples=samples,
        seed=seed,
        max_rows=max_rows,
        chunk=chunk,
    )
    return list(generate_each(model, prompts, options))


def generate_each(
    model: StripedHyena2,
    prompts: Sequence[Tokens],
    options: GenerationOptions,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Generation]:
    """Like `generate`, but give the samples one by one, holding `max_rows` of them at a time.

    Args:
        progress: called with the number of tokens added to all samples, after each step.

    Raises:
        Sh2Error: a prompt has an id outside the vocabulary.
    """
    rows = as_rows(prompts, model.config.vocab_size)
    jobs = ((prompt, sample) for prompt in range(len(rows)) for sample in range(options.samples))
    while batch := list(islice(jobs, options.max_rows)):
        decoder = _Decoder(model, options, [rows[prompt] for prompt, _ in batch], progress)
        decoder.write(
            torch.stack([_uniforms(options.seed, rows[prompt], sample, options.length) for prompt, sample in batch])
        )
        yield from (decoder.result(place, *job) for place, job in enumerate(batch))


def _uniforms(seed: int, prompt: NDArray[np.int64], sample: int, length: int) -> Tensor:
    """The random numbers of one sample [length], float64, from the seed, the prompt and the sample's number."""
    digest = hashlib.blake2b(
        prompt.tobytes(), digest_size=8, salt=b"%d" % sample, person=seed.to_bytes(16, "little", signed=True)
    )
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
    return torch.rand(length, generator=generator, dtype=torch.float64)


@torch.inference_mode()
def prefill(model: StripedHyena2, prompts: Sequence[NDArray[np.int64]], *, chunk: int) -> tuple[ModelState, Tensor]:
    """Run the prompts, equal ones once and equal lengths together; an empty one as an EOD.

    Returns:
        The state after each prompt, one row a prompt, and the logits_BV of what follows it.
    """
    device = model.embedding.weight.device
    prompts = [prompt if prompt.size else np.array([EOD]) for prompt in prompts]
    distinct: dict[bytes, int] = {}
    places = [distinct.setdefault(prompt.tobytes(), len(distinct)) for prompt in prompts]
    unique = [np.frombuffer(key, dtype=np.int64) for key in distinct]
    groups = batches_of_equal_length([len(row) for row in unique], max_tokens=8 * chunk, chunk=chunk)
    states: list[ModelState] = []
    logits: list[Tensor] = []
    for members in groups:
        ids_BL = to_batch([unique[member] for member in members], device)
        last_BD, state = read(model, ids_BL, most=chunk)
        states.append(state)
        logits.append(model.logits(last_BD))
    where = {member: row for row, member in enumerate(member for members in groups for member in members)}
    rows = torch.tensor([where[place] for place in places], device=device)
    return select(states[0] if len(states) == 1 else join(states), rows), torch.cat(logits)[rows]


class _Decoder:
    """A batch of rows: reads their prompts, then writes token by token; rows that end leave the batch."""

    def __init__(
        self,
        model: StripedHyena2,
        options: GenerationOptions,
        prompts: Sequence[NDArray[np.int64]],
        progress: Callable[[int], None],
    ) -> None:
        self.model = model
        self.sampling = options.sampling()
        self.stop_at_eod = options.stop_at_eod
        self.progress = progress
        self.device = model.embedding.weight.device
        self.state, self.logits_BV = prefill(model, prompts, chunk=options.chunk)
        V = model.config.vocab_size
        self.history = History(options.constraints(), prompts, length=options.length, vocab_size=V, device=self.device)
        allowed_V = restrict(torch.zeros(1, V, device=self.device), self.sampling.alphabet)[0] == 0
        ends_V = (torch.arange(V, device=self.device) == EOD) & self.stop_at_eod
        self.writable_V = allowed_V & ~ends_V

    @torch.inference_mode()
    def write(self, uniforms_BL: Tensor) -> None:
        """Sample as many tokens a row as there are random numbers in one, or until the row ends."""
        rows, length = uniforms_BL.shape
        self.ids = np.full((rows, length), EOD, dtype=np.int64)
        self.log_probs = np.zeros((rows, length), dtype=np.float32)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.ends = np.zeros(rows, dtype=np.int64)
        alive = np.arange(rows)
        for step in range(length):
            ids_B, ends_B = self._choose(uniforms_BL[alive, step].to(self.device))
            log_probs_B = log_probs_of(self.logits_BV[:, None], ids_B[:, None])[:, 0]
            # float64 holds all three exactly, and one copy waits for the device once
            ids, ends, log_probs = torch.stack([ids_B.double(), ends_B.double(), log_probs_B.double()]).cpu().numpy()
            written = (ends == _ENDS.index(End.LENGTH)) | (ends == _ENDS.index(End.MOTIF))
            going = ends == _ENDS.index(End.LENGTH)
            self.ends[alive] = ends
            self.ids[alive[written], step] = ids[written]
            self.log_probs[alive[written], step] = log_probs[written]
            self.lengths[alive[written]] += 1
            self.progress(int(written.sum()))
            if not going.any() or step == length - 1:
                return
            if not going.all():
                kept = torch.from_numpy(going.nonzero()[0]).to(self.device)
                self.state, ids_B, alive = select(self.state, kept), ids_B[kept], alive[going]
                self.history.select(kept)
            self.logits_BV, self.state = self.model.step(ids_B, self.state)

    def _choose(self, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of every row, and what it ends, if anything: ids_B, and indices ends_B into `_ENDS`."""
        banned_BV = self.history.banned()
        ids_B = choose(self.logits_BV, self.sampling, uniforms_B, banned_BV)
        self.history.write(ids_B)
        ends_B = torch.full_like(ids_B, _ENDS.index(End.LENGTH))
        ends_B = ends_B.masked_fill(self.history.ended(), _ENDS.index(End.MOTIF))
        if self.stop_at_eod:
            ends_B = ends_B.masked_fill(ids_B == EOD, _ENDS.index(End.EOD))
        if banned_BV is not None:
            # an EOD that is chosen for want of anything else is not the model's end of the document
            stuck_B = ~(self.writable_V & ~banned_BV).any(dim=-1)
            ends_B = ends_B.masked_fill(stuck_B, _ENDS.index(End.BANNED))
        return ids_B, ends_B

    def result(self, place: int, prompt: int, sample: int) -> Generation:
        """The continuation of row `place`."""
        length = self.lengths[place]
        return Generation(
            prompt=prompt,
            sample=sample,
            ids=self.ids[place, :length],
            log_probs=self.log_probs[place, :length],
            end=_ENDS[self.ends[place]],
        )
