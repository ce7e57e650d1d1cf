"""The `evo` command: assembles the commands and turns the users' mistakes into one line on stderr."""

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from evo_cli.commands.bench import bench
from evo_cli.commands.convert import convert
from evo_cli.commands.doctor import doctor
from evo_cli.commands.embed import embed
from evo_cli.commands.evaluate import evaluate
from evo_cli.commands.finetune import finetune
from evo_cli.commands.generate import generate
from evo_cli.commands.merge import merge
from evo_cli.commands.models import models
from evo_cli.commands.plan import plan
from evo_cli.commands.predict import predict
from evo_cli.commands.prepare import prepare
from evo_cli.commands.scan import scan
from evo_cli.commands.score import score
from evo_cli.commands.selftest import selftest
from evo_cli.commands.train import train
from evo_cli.mistakes import describe, drop_stdout, report
from evo_cli.signals import INTERRUPTED, SIGNALS


class EvoGroup(TyperGroup):
    """A group whose commands end a user's mistake with `error:` and `hint:` lines, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # the reader of our stdout went away (`evo score ... | head`): nothing is wrong
            drop_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            SIGNALS.settle()
            typer.secho("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # each is looked at: what is no user's mistake goes on as it came
            described = describe(error)
            if described is None:
                raise
            report(*described)
            if isinstance(error, OSError) and error.filename is None:
                drop_stdout()
            raise typer.Exit(1) from error


app = typer.Typer(
    name="evo",
    cls=EvoGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"evo {version('evo-sh2')}")
        raise typer.Exit


@app.callback()
def evo(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, score and generate DNA with StripedHyena 2, the architecture of the Evo 2 genome models.

    Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 bad data, 2 bad command line, 130 Ctrl-C.
    """


for command in (
    *(prepare, train, score, merge, scan, embed, generate, finetune, predict),
    *(convert, models, plan, selftest, doctor),
):
    app.command()(command)
app.add_typer(evaluate, name="eval")
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line."""
    SIGNALS.watch()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of records are UTF-8 whatever the locale, as in the files that `-o` writes
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        app()
    finally:
        SIGNALS.settle()
