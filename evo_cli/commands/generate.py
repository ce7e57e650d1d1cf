"""`evo generate`: prompts in, FASTA out."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import (
    BackendName,
    BackendOption,
    BoxedModelOption,
    DeviceOption,
    KVDtype,
    KVDtypeOption,
    Precision,
    PrecisionOption,
)

if TYPE_CHECKING:
    from sh2.generation.generate import GenerationOptions

_MOST = (1 << 31) - 1  # of what is counted: tokens before and after each other are, in 32 bits


class Alphabet(StrEnum):
    """Which tokens may be sampled."""

    DNA = "dna"
    ANY = "any"


def generate(
    model: BoxedModelOption = "",
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="A prompt, as text.")] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FASTA", help="A FASTA file of prompts; `-` is stdin.")
    ] = None,
    length: Annotated[
        int, typer.Option("--length", "-n", min=1, max=_MOST, help="New bases of each sample, at most.")
    ] = 1000,
    samples: Annotated[int, typer.Option("--samples", "-k", min=1, max=_MOST, help="Samples of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0, help="0 takes the likeliest.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Keep the likeliest that reach this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Keep tokens at least this times as likely as the likeliest; 0 keeps all.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same samples.")] = 0,
    alphabet: Annotated[Alphabet, typer.Option("--alphabet", help="dna samples A, C, G and T only.")] = Alphabet.DNA,
    stop_at_eod: Annotated[
        bool, typer.Option("--stop-at-eod/--no-stop-at-eod", help="End a sample where the model ends the document.")
    ] = True,
    forbid: Annotated[
        str | None, typer.Option("--forbid", metavar="MOTIFS", help="Never complete one of these; commas between them.")
    ] = None,
    no_repeat: Annotated[
        int | None, typer.Option("--no-repeat", min=1, max=_MOST, metavar="K", help="Write no K-mer twice in a sample.")
    ] = None,
    stop_at: Annotated[
        str | None, typer.Option("--stop-at", metavar="MOTIF", help="End a sample once it has written this.")
    ] = None,
    include_prompt: Annotated[bool, typer.Option("--include-prompt", help="Put the prompt in front.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FASTA file; stdout if not given.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    kv_dtype: KVDtypeOption = KVDtype.AUTO,
) -> None:
    """Generate sequences that continue prompts, as FASTA.

    A prompt comes from --prompt, from a FASTA file or from stdin; an empty one (`--prompt ""`) starts from nothing.
    Prompts of any lengths run together, and a sample depends only on its prompt, the seed and its own number. Headers
    hold the settings, the mean log-likelihood a base under the model, and what ended the sample: length, eod, motif
    (--stop-at), or banned: nothing that --forbid and --no-repeat allow was left to write.

    \b
    Examples:
      evo generate --model run/model --prompt ACGTTGCA --length 500 --seed 1
      evo generate --model run/model --prompts starts.fa --samples 4 --temperature 0.8 --top-k 4 -o new.fa
      evo generate --model run/model --prompt ATG --forbid GAATTC,GGATCC --no-repeat 12 --stop-at TAA
      zcat genome.fa.gz | head -20 | evo generate --model run/model --prompts - --length 100
    """
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either --prompt TEXT or --prompts FASTA", param_hint="--prompt")
    if not 0 < top_p <= 1:
        raise typer.BadParameter("must lie above 0 and up to 1", param_hint="--top-p")
    if not 0 <= min_p <= 1:
        raise typer.BadParameter(f"must lie in 0..1, not {min_p:g}", param_hint="--min-p")
    forbidden = [] if forbid is None else [_motif(motif, "--forbid") for motif in forbid.split(",")]
    stop_at = None if stop_at is None else _motif(stop_at, "--stop-at")
    if not -(2**63) <= seed < 2**63:
        raise typer.BadParameter("must lie in -2**63..2**63 - 1", param_hint="--seed")
    if not (temperature == 0 or 1e-6 <= temperature <= 1e6):
        raise typer.BadParameter("must be 0, or lie in 1e-6..1e6", param_hint="--temperature")
    if prompt is not None and not (prompt.isascii() and prompt.isprintable()):
        raise typer.BadParameter("must be printable ASCII, without line ends", param_hint="--prompt")
    if include_prompt and ">" in (prompt or ""):
        raise typer.BadParameter("`>` begins a record of the FASTA that --include-prompt writes", param_hint="--prompt")
    from data.reader import read_records
    from data.sequence import to_upper_dna
    from data.tokenizer import decode
    from evo_cli.generating import samples_of
    from evo_cli.inference import mark_of, open_replicas
    from evo_cli.outputs.stream import check_outputs, open_output
    from evo_cli.progress import counter
    from sh2.generation.generate import GenerationOptions

    check_outputs([output], [prompts])
    if prompts is None:
        names, texts = ["sample"], [_typed(prompt or "")]
    else:
        records = list(read_records(prompts))
        names, texts = [record.name or "unnamed" for record in records], [to_upper_dna(r.sequence) for r in records]
    options = GenerationOptions(
        length=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        alphabet="ACGT" if alphabet is Alphabet.DNA else None,
        stop_at_eod=stop_at_eod,
        forbid=forbidden,
        no_repeat=no_repeat,
        stop_at=stop_at,
        samples=samples,
        seed=seed,
    )
    settings = _settings(options)
    replicas = open_replicas(model, device, precision, backend, kv_dtype)
    if mark := mark_of(replicas.config, replicas.precision):
        settings += f" precision={mark}"
    if kv_dtype is not KVDtype.AUTO:
        settings += f" kv_dtype={kv_dtype}"
    with open_output(output) as stream, counter("generate", total=length * samples * len(texts)) as advance:
        for result in samples_of(replicas, texts, options, advance):
            text = decode(result.ids)
            if include_prompt:
                text = texts[result.prompt].decode("latin-1") + text
            mean = f"{result.log_probs.mean():.4f}" if result.log_probs.size else "NA"
            stream.write(
                f">{names[result.prompt]}_{result.sample + 1} length={len(result.ids)} mean_log_likelihood={mean} "
                f"{settings} end={result.end}\n"
            )
            for start in range(0, len(text), 80):
                stream.write(text[start : start + 80] + "\n")


def _motif(text: str, option: str) -> str:
    """A motif as typed, upper-cased."""
    if not text or set(text.upper()) - set("ACGT"):
        raise typer.BadParameter(f"a motif must be of A, C, G and T, one or more, not `{text}`", param_hint=option)
    return text.upper()


def _settings(options: "GenerationOptions") -> str:
    """What a header says of the settings: the first four always, the others where they are used."""
    more = {
        "min_p": f"{options.min_p:g}" if options.min_p else "",
        "forbid": ",".join(options.forbid),
        "no_repeat": options.no_repeat,
        "stop_at": options.stop_at,
    }
    return " ".join(
        [
            f"seed={options.seed} temperature={options.temperature:g} top_k={options.top_k} top_p={options.top_p:g}",
            *(f"{name}={value}" for name, value in more.items() if value),
        ]
    )


def _typed(prompt: str) -> bytes:
    """A typed prompt, upper-cased as the model was trained; but the case of a tag between bars means something."""
    from data.sequence import to_upper_dna

    parts = prompt.encode().split(b"|")
    tagged = len(parts) - 1 - (len(parts) - 1) % 2  # a bar that is never closed begins no tag
    return b"|".join(
        part if number % 2 and number < tagged else to_upper_dna(part) for number, part in enumerate(parts)
    )
