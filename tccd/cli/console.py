"""What every command shares with its reader: errors as one line, progress on a terminal, JSON for programs.

Results go to stdout; errors and progress go to stderr. Exit codes: 0; 1 for a failure; 2 for wrong usage,
which a `ConfigError` is too. With `--json`, stdout also ends with
`{"error": {"type": ..., "message": ...}}` after a failure; only usage that the parser of the command line
refuses is told on stderr alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from tccd.errors import ConfigError, TCCDError

_JSON = "tccd.json"


class ReportingGroup(TyperGroup):
    """A command group that tells tccd's own errors, and those of files, in one line without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn its error into an exit code."""
        quiet_libraries()
        try:
            return super().invoke(ctx)
        except (TCCDError, OSError) as error:
            # An OSError about a file (no permission, disk full) tells all in its message; one about none is a
            # broken pipe, which typer knows how to end on, or a bug.
            if isinstance(error, OSError) and error.filename is None:
                raise
            message = " ".join(str(error).split())
            if ctx.meta.get(_JSON):
                print_json({"error": {"type": type(error).__name__, "message": message}})
            typer.echo(f"tccd: {message}", err=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[_JSON] = value
    return value


#: The `--json` option; `ReportingGroup` knows of it.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program.", callback=_remember)]


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    typer.echo(json.dumps(value, allow_nan=False))


def output() -> Console:
    """The console for results; colors and the terminal's width only where it is one."""
    return Console(file=sys.stdout, highlight=False)


def quiet_libraries() -> None:
    """Keep other libraries' progress bars out of a pipe; before they are imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress display on stderr, gone when done; none where stderr is no terminal.

    Yields:
        A function of (stage, done, total), to call as often as there is news; total None where it is unknown.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield report
