"""What every command shares with its reader: errors as one line, progress, JSON for programs.

Results go to stdout; errors and progress go to stderr: a bar on a terminal, elsewhere a line every 30 seconds.
Exit codes: 0; 1 for a failure; 2 for wrong usage, which a `ConfigError` is too. With `--json`, stdout also ends
with `{"error": {"type": ..., "message": ...}}` after a failure; only usage that the parser of the command line
refuses is told on stderr alone.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from tccd.atomic import reason, shown
from tccd.errors import ConfigError, TCCDError

_JSON = "tccd.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: Seconds between two lines of progress where stderr is no terminal.
EVERY = 30.0


class ReportingGroup(TyperGroup):
    """A command group that tells tccd's own errors, and those of files, in one line without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn its error into an exit code."""
        quiet_libraries()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # typer knows how to end on it
            raise
        except (TCCDError, OSError, RecursionError) as error:
            message = _message(error)
            # What can't be told for a full disk can't be told of it either.
            with suppress(OSError):
                if ctx.meta.get(_JSON):
                    print_json({"error": {"type": type(error).__name__, "message": message}})
            with suppress(OSError):
                typer.echo(f"tccd: {message}", err=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt as error:
            for note in getattr(error, "__notes__", ()):
                typer.echo(f"tccd: {note}", err=True)
            raise


def _message(error: BaseException) -> str:
    """An error and the notes on it, in one line."""
    if isinstance(error, RecursionError):
        text = "an input is nested too deeply to be read; expected plain JSON"
    elif isinstance(error, OSError) and not isinstance(error, TCCDError) and error.errno:
        text = _system_message(error)
    else:
        text = str(error) or type(error).__name__
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return " ".join(". ".join([text.rstrip("."), *notes] if notes else [text]).split())


def _system_message(error: OSError) -> str:
    """What the operating system refused, which no part of tccd has put into words."""
    place = None if error.filename is None else shown(os.fsdecode(error.filename))
    if error.errno in _FULL:
        place = place or "a file, or what this command's output goes to"
        return f"disk is full: could not write {place}; free some room, or write to another disk"
    if place is None:
        return f"reading or writing failed: {reason(error)}; check the disk and the paths, and run it again"
    return f"can't use {place}: {reason(error)}; check the path, or give another"


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


Report = Callable[[str, int, "int | None"], None]


@contextmanager
def progress(every: float = EVERY) -> Iterator[Report]:
    """Progress on stderr: a display that is gone when done; where that is no terminal, a line now and then.

    Args:
        every: seconds between two lines.

    Yields:
        A function of (stage, done, total), to call as often as there is news; total None where it is unknown.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(every) as report:
            yield report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as display:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield show


@contextmanager
def _lines(every: float) -> Iterator[Report]:
    """A line of the last news every so many seconds, from a thread: a step may take longer than that."""
    news, over = News(), threading.Event()

    def tell() -> None:
        while not over.wait(every):
            line = news.line()
            with suppress(OSError):
                if line:
                    typer.echo(line, err=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield news
    finally:
        over.set()
        teller.join()


@dataclass
class News:
    """The last news of a run, as a line.

    Attributes:
        clock: seconds.

    Example:
        >>> now = iter([0.0, 60.0, 60.0])
        >>> news = News(clock=lambda: next(now))
        >>> news("harvest", 0, 2000); news("harvest", 500, 2000); news.line()
        'harvest 500 of 2000, 3 min left'
    """

    clock: Callable[[], float] = time.monotonic
    _stage: str = ""
    _begun: tuple[float, int] = (0.0, 0)
    _last: tuple[int, int | None] = field(default=(0, None))

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Take news, as `progress` yields it."""
        now = self.clock()
        if stage != self._stage:
            self._stage, self._begun = stage, (now, done)
        self._last = done, total

    def line(self) -> str:
        """What there is to say; nothing before the first news."""
        if not self._stage:
            return ""
        (start, first), (done, total) = self._begun, self._last
        spent = self.clock() - start
        told = f"{self._stage} {done}" + ("" if total is None else f" of {total}")
        if total is not None and done > first:
            return f"{told}, {_span(spent / (done - first) * (total - done))} left"
        return f"{told}, for {_span(spent)}"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
