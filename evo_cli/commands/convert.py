"""`evo convert`: weights from the published format to ours and back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Formats to convert to."""

    SH2 = "sh2"
    PUBLISHED = "published"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Weights: a .pt file, its first part (.pt.part0), a safetensors file, a folder, a published name"
            " such as evo2_7b, or a hub repository.",
        ),
    ],
    destination: Annotated[
        Path,
        typer.Argument(metavar="DST", help="Model folder to write; with `--to published` a .pt or .safetensors file."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published configuration, YAML or JSON. Not needed for published names."),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The adapter.safetensors of a run that began from SRC: merged into it."),
    ] = None,
    to: Annotated[Format, typer.Option(help="Format to write.")] = Format.SH2,
) -> None:
    """Convert weights between the published Evo 2 format and a model folder.

    Names of published files and of Savanna's training checkpoints are known. Values are kept to the bit, one tensor
    is in memory at a time, and nothing in a file is ever executed. DST is complete or not there.

    \b
    Examples:
      evo convert evo2_7b.pt evo2_7b/                          the name says which model it is
      evo convert evo2_40b.pt.part0 evo2_40b/                  downloaded in parts: all of them are read
      evo convert weights.safetensors model/ --config c.yml    your own weights, with their configuration
      evo convert run/model tuned.pt --to published            and back: writes tuned.pt and tuned.yml
      evo convert evo2_7b tuned/ --adapters run/adapter.safetensors    what `evo train --lora-rank` learned, merged
    """
    from evo_cli.progress import progress_bar
    from sh2.checkpoint import Target
    from sh2.checkpoint import convert as convert_weights

    with progress_bar("convert, MB") as bar:
        written = convert_weights(
            source,
            destination,
            config_file=config,
            adapters=adapters,
            target=Target(to.value),
            progress=lambda done, total: bar.update(done / 1e6, total / 1e6),
        )
        bar.note(f"wrote {written}")
