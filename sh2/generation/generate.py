"""Generation: prompts in, sampled tokens out, one state carried from token to token."""

# B prompts, R slots, T tokens to write, V vocabulary

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.generation.constraints import Constraints, History
from sh2.generation.decoding import Decoder, affordable_rows
from sh2.generation.prompts import key_of, read_prompts
from sh2.generation.prompts import prefill as prefill
from sh2.generation.sampling import Sampling, choose, restrict
from sh2.model import StripedHyena2
from sh2.reading.fetch import no_numbers
from sh2.reading.scoring import log_probs_of
from sh2.state import ModelState, select
from sh2.tokens import EOD, Tokens, as_rows

_SEEDS = 1 << 63
_WORTH_RECORDING = 256  # tokens to come, for which a step of fewer rows is recorded


_Job = tuple[int, tuple[int, int]]  # number among all; prompt and sample


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
    """Like `generate`, but give the samples one by one, in order.

    At most `max_rows` of them are decoded at a time, fewer where a GPU's memory asks for it; when one ends, the next
    takes its place. What is held beside are samples that ended before one that comes before them.

    Args:
        progress: called with the number of tokens added to all samples, after each step.

    Raises:
        Sh2Error: a prompt has an id outside the vocabulary.
    """
    jobs = ((prompt, sample) for prompt in range(len(prompts)) for sample in range(options.samples))
    return generate_jobs(model, prompts, jobs, options, progress)


def generate_jobs(
    model: StripedHyena2,
    prompts: Sequence[Tokens],
    jobs: Iterable[tuple[int, int]],
    options: GenerationOptions,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Generation]:
    """Like `generate_each`, for some samples of some prompts: pairs (prompt, sample), whose order the results keep."""
    writer = _Writer(model, options, as_rows(prompts, model.config.vocab_size), jobs, progress)
    finished: dict[int, Generation] = {}
    turn = 0
    while writer.active:
        finished.update(writer.write())
        while turn in finished:
            yield finished.pop(turn)
            turn += 1


def _uniforms(seed: int, prompt: NDArray[np.int64], sample: int, length: int) -> Tensor:
    """The random numbers of one sample [length], float64, from the seed, the prompt and the sample's number."""
    digest = hashlib.blake2b(
        prompt.tobytes(), digest_size=8, salt=b"%d" % sample, person=seed.to_bytes(16, "little", signed=True)
    )
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
    return torch.rand(length, generator=generator, dtype=torch.float64)


@dataclass(kw_only=True, slots=True)
class _Sample:
    """A continuation that is being written."""

    number: int  # among all jobs
    prompt: int
    sample: int
    ids: NDArray[np.int64]  # room for all tokens it may have, as the next
    log_probs: NDArray[np.float32]
    length: int = 0

    def end(self, end: End) -> Generation:
        ids, log_probs = self.ids[: self.length].copy(), self.log_probs[: self.length].copy()
        return Generation(prompt=self.prompt, sample=self.sample, ids=ids, log_probs=log_probs, end=end)


class _Writer:
    """Slots, each with a sample that is being written. When one ends, the next sample that waits takes its slot."""

    def __init__(
        self,
        model: StripedHyena2,
        options: GenerationOptions,
        prompts: Sequence[NDArray[np.int64]],
        jobs: Iterable[tuple[int, int]],
        progress: Callable[[int], None],
    ) -> None:
        self.model, self.options, self.prompts, self.progress = model, options, prompts, progress
        self.sampling = options.sampling()
        self.device, V = model.embedding.weight.device, model.config.vocab_size
        self.waiting = _Lookahead(enumerate(jobs))
        first = self.waiting.take(options.max_rows)
        self.active: dict[int, _Sample] = {}
        self.kept: tuple[list[bytes], ModelState, Tensor] | None = None  # of a prompt with samples that wait
        if not first:
            return
        longest = max(len(prompt) for prompt in prompts) or 1
        rows = affordable_rows(model, longest + options.length, len(first))
        self.waiting.put_back(first[rows:])
        allowed_V = restrict(torch.zeros(1, V, device=self.device), self.sampling.alphabet)[0] == 0
        ends_V = (torch.arange(V, device=self.device) == EOD) & options.stop_at_eod
        self.writable_V = allowed_V & ~ends_V
        self.uniforms_RT = torch.zeros(rows, options.length, dtype=torch.float64, device=self.device)
        nothing = [np.zeros(0, dtype=np.int64)] * rows
        self.history = History(options.constraints(), nothing, length=options.length, vocab_size=V, device=self.device)
        self.decoder = Decoder(model, rows)
        self._start(range(rows), first[:rows])

    @torch.inference_mode()
    def write(self) -> dict[int, Generation]:
        """Write a token of every sample; give those that it ends, by their numbers."""
        ids_R, record = self._choose()
        if any(one.length + 1 < self.options.length for one in self.active.values()):
            # before the host has seen what was chosen: a GPU goes on meanwhile, and a row that ended is none the worse
            self.decoder.step(ids_R)
        ended = self._take_in(record.read())
        free = [slot for slot in range(self.decoder.rows) if slot not in self.active]
        if jobs := self.waiting.take(len(free)):
            self._start(free[: len(jobs)], jobs)
        elif free and self.active:
            self._shrink()
        return ended

    def _choose(self) -> tuple[Tensor, "_Record"]:
        """The next token ids_R of every slot; and ids, indices into `_ENDS` and log-probabilities, for the host."""
        logits_RV, history = self.decoder.logits_RV, self.history
        T = self.uniforms_RT.shape[1]
        uniforms_R = self.uniforms_RT.gather(1, history.counts_B.clamp(max=T - 1)[:, None])[:, 0]
        banned_RV = history.banned()
        ids_R = choose(logits_RV, self.sampling, uniforms_R, banned_RV)
        history.write(ids_R)
        ends_R = torch.full_like(ids_R, _ENDS.index(End.LENGTH))
        ends_R = ends_R.masked_fill(history.ended(), _ENDS.index(End.MOTIF))
        if self.options.stop_at_eod:
            ends_R = ends_R.masked_fill(ids_R == EOD, _ENDS.index(End.EOD))
        if banned_RV is not None:
            # an EOD that is chosen for want of anything else is not the model's end of the document
            stuck_R = ~(self.writable_V & ~banned_RV).any(dim=-1)
            ends_R = ends_R.masked_fill(stuck_R, _ENDS.index(End.BANNED))
        log_probs_R = log_probs_of(logits_RV[:, None], ids_R[:, None])[:, 0]
        # float64 holds all three exactly, and one copy waits for the device once
        return ids_R, _Record(torch.stack([ids_R.double(), ends_R.double(), log_probs_R.double()]))

    def _take_in(self, record: NDArray[np.float64]) -> dict[int, Generation]:
        """Add what was chosen to the samples; give those that it ends, and free their slots."""
        ended: dict[int, Generation] = {}
        written = 0
        for slot, one in list(self.active.items()):
            token, end, log_prob = record[:, slot]
            if math.isnan(log_prob):
                raise no_numbers()
            why = _ENDS[int(end)]
            if why in (End.LENGTH, End.MOTIF):
                one.ids[one.length], one.log_probs[one.length] = token, log_prob
                one.length += 1
                written += 1
            if why is not End.LENGTH or one.length == self.options.length:
                ended[one.number] = one.end(why)
                self.decoder.take_out(slot)
                del self.active[slot]
        self.progress(written)
        return ended

    @torch.inference_mode()
    def _start(self, slots: Sequence[int], jobs: Sequence[_Job]) -> None:
        """Begin samples in slots: read their prompts, each once, or take the state of one that was kept."""
        length, prompts = self.options.length, [self.prompts[prompt] for _, (prompt, _) in jobs]
        for slot, (number, (of, sample)) in zip(slots, jobs, strict=True):
            ids, log_probs = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.float32)
            self.active[slot] = _Sample(number=number, prompt=of, sample=sample, ids=ids, log_probs=log_probs)
        self.history.start(slots, prompts)
        drawn = [_uniforms(self.options.seed, self.prompts[prompt], sample, length) for _, (prompt, sample) in jobs]
        self.uniforms_RT[torch.tensor(slots, device=self.device)] = torch.stack(drawn).to(self.device)
        slots_of: dict[bytes, list[int]] = {}
        for slot, prompt in zip(slots, prompts, strict=True):
            slots_of.setdefault(key_of(prompt), []).append(slot)
        wanted = key_of(self.prompts[self.waiting.head[1][0]]) if self.waiting.head else None
        known, self.kept = self.kept, None
        fresh = [prompt for prompt in prompts if known is None or key_of(prompt) not in known[0]]
        read = chain([known] if known else [], read_prompts(self.model, fresh, chunk=self.options.chunk))
        for keys, state, logits_BV in read:
            self._put(slots_of, keys, state, logits_BV, give=wanted not in keys)
            if wanted in keys:
                row = torch.tensor([keys.index(wanted)], device=self.device)
                picked = state if len(keys) == 1 else select(state, row)
                self.kept = [wanted], picked, logits_BV[row]

    def _put(
        self, slots_of: dict[bytes, list[int]], keys: list[bytes], state: ModelState, logits_BV: Tensor, *, give: bool
    ) -> None:
        """Put what was read into the slots that wait for it."""
        places = {slot: row for row, key in enumerate(keys) for slot in slots_of.get(key, ())}
        if places:
            tokens = len(keys[0]) // np.dtype(np.int64).itemsize
            most = tokens + self.options.length
            self.decoder.put(places, state, logits_BV, length=tokens, most=most, give=give)

    def _shrink(self) -> None:
        """Close slots that nobody waits for, where it is worth it: a step that is recorded has to be recorded anew."""
        left = max(self.options.length - one.length for one in self.active.values())
        if self.decoder.records and (left < _WORTH_RECORDING or 2 * len(self.active) > self.decoder.rows):
            return
        slots = sorted(self.active)
        self.decoder.keep(slots)
        picked = torch.tensor(slots, device=self.device)
        self.history.select(picked)
        self.uniforms_RT = self.uniforms_RT[picked]
        self.active = {place: self.active[slot] for place, slot in enumerate(slots)}


class _Record:
    """Numbers on their way to the host, float64."""

    def __init__(self, numbers: Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.numbers = numbers.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        if numbers.is_cuda:
            self.event = torch.cuda.current_stream(numbers.device).record_event()

    def read(self) -> NDArray[np.float64]:
        """Wait until they are there."""
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.numpy()


class _Lookahead:
    """Jobs that wait, of which the first is known."""

    def __init__(self, jobs: Iterable[_Job]) -> None:
        self._jobs = iter(jobs)
        self.head = next(self._jobs, None)

    def take(self, count: int) -> list[_Job]:
        """The next jobs, as many as there are up to a number."""
        taken: list[_Job] = []
        while self.head is not None and len(taken) < count:
            taken.append(self.head)
            self.head = next(self._jobs, None)
        return taken

    def put_back(self, jobs: Sequence[_Job]) -> None:
        """Let jobs that were taken last wait again."""
        if jobs:
            rest = [] if self.head is None else [self.head]
            self._jobs = chain(jobs, rest, self._jobs)
            self.head = next(self._jobs)
