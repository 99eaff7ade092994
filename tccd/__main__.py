"""The `tccd` command: composition root, the only file that may import from every part, and does so lazily."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli import app as probe
from tccd import __version__
from tccd.cli.bank import app as bank
from tccd.cli.console import ReportingGroup
from tccd.cli.fit import fit
from tccd.cli.generate import generate
from tccd.cli.route import app as route
from tccd.verify.command import verify

app = typer.Typer(
    name="tccd",
    cls=ReportingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    # A traceback is for whoever files a bug: plain, and without the values of variables.
    pretty_exceptions_enable=False,
)
app.command()(fit)
app.add_typer(probe, name="probe")
app.command()(generate)
app.add_typer(route, name="route")
app.add_typer(bank, name="bank")
app.command()(verify)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"tccd {__version__}")
        raise typer.Exit


@app.callback()
def tccd(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Measure how much a vision-language model listens to its language prior, and correct it.

    \b
    Fit centroids for a model, measure what each modality is worth to it
    (probe), and decode with what the model would say without something taken
    away (generate), or with the image out of the deep layers (route).

    \b
    Exit codes: 0; 1 for a failure; 2 for wrong usage. With --json a failure
    is also the last object on stdout: {"error": {"type", "message"}}.

    \b
    Examples:
      tccd fit --model ./model --data easy-vqa --split train \\
        --layers text=3,vision=3 --k 16 --out bank.safetensors
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --out report
      tccd generate --model ./model --image cat.jpg \\
        --prompt "What color is the cat?"
      tccd bank show bank.safetensors
    """


def main() -> None:
    """Run the command; the console script `tccd`."""
    app(prog_name="tccd")


if __name__ == "__main__":
    main()
