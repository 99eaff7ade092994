"""`tccd probe`: the diagnostics on the command line."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probes.cli_reports import advise, compare
from probes.cli_tables import show
from probes.coverage.command import coverage
from probes.references import KINDS, TEXT, listed
from probes.saturation.command import saturation
from tccd.cli.console import AsJson, output, print_json, progress
from tccd.cli.generate import Gate
from tccd.cli.options import (
    BatchSize,
    Columns,
    Data,
    DataRevision,
    Device,
    DType,
    FittedOn,
    Model,
    Precision,
    Revision,
    Split,
    TrustRemoteCode,
    parse_columns,
    parse_layers,
    parse_numbers,
    parse_segments,
)
from tccd.errors import ConfigError, WriteError

if TYPE_CHECKING:
    from tccd.data import Samples

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.command()(advise)
app.command()(compare)
app.command()(coverage)
app.command()(saturation)

STRENGTHS = "0.5,1,2"
"""What a reference is measured at where no strength is given."""

_GRID = "Grid: every combination is measured"


@app.callback()
def probe() -> None:
    """Measure what each modality is worth to a model, whether to contrast, and what data cover.

    \b
    Examples:
      tccd probe replacement --model ./model --reference all \\
        --data easy-vqa --out report
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --alphas 0,0.4 --alpha-cd 0.5,1 --out report
      tccd probe advise report
      tccd probe compare report other-report --out compared
      tccd probe coverage --model ./model --bank union.safetensors \\
        --data a.jsonl --data b.jsonl --out covered
    """


@app.command()
def replacement(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page, its JSON and CSV.")],
    bank: Annotated[
        list[Path] | None,
        typer.Option("--bank", metavar="FILE", help="Bank fitted for the model; repeat it for several K."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help=f"What to contrast with: {', '.join(KINDS)}; all: those that can be made here. Some take a "
            "value, as in blank-image=black, noised-image=500, early-exit=high; two at once a weight, as in "
            "no-vision+0.5*mean-vision. By default text-centroid, with a bank.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Layers to erase at, as in 4,8,12 or text=12,vision=16; by default all of the bank that have "
            "one above them.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    alphas: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Values of alpha_interp, what erasure keeps: 0 nothing, 1 all.",
            rich_help_panel=_GRID,
        ),
    ] = "0",
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="text: all (the tail), question, options, system; vision: tokens, span. "
            "As in text=all,question,vision=tokens; the first of each by default.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    alpha_cd: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Measure contrast too, with these strengths, of either sign; {STRENGTHS} where --reference is "
            "given, else none by default.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    beta: Annotated[
        str, typer.Option(metavar="LIST", help="Plausibilities of the contrast; 0 is off.", rich_help_panel=_GRID)
    ] = "0",
    gate: Annotated[
        Gate | None,
        typer.Option(help="Measure contrast with this gate too, beside none.", rich_help_panel=_GRID),
    ] = None,
    gate_threshold: Annotated[
        str, typer.Option(metavar="LIST", help="Thresholds of the gate.", rich_help_panel=_GRID)
    ] = "0.5",
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Beside each cell of the lowest alpha and the first segment: a random direction of equal norm, a "
            "random centroid, text and vision with doses matched, and for text erasure that spares the answer's "
            "position. Beside each contrast with centroids: one with a random direction.",
            rich_help_panel=_GRID,
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut short, with the same settings.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, at most; drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw, and of the controls.")] = 42,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Asked about every image instead of the data's prompts."),
    ] = None,
    split: Split = None,
    data_revision: DataRevision = None,
    column: Columns = None,
    fitted_on: FittedOn = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 16,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure contrast with references, and centroid cost: the accuracy lost when a modality is replaced.

    \b
    Without a bank, contrast alone is measured, with references that need
    none. Which one to use, if any, tells `tccd probe advise`.

    \b
    Writes report.json, a self-contained report.html and CSV tables. With
    --json, prints the report's models, data, warnings, cells, controls,
    settings of contrast (tccd_cells), protocols and ratio. Beside a model's
    accuracy stands that with the image withheld.

    \b
    Choices are scored by the next token, and so are open answers where each
    is one token; else all open ones are generated and matched but for case,
    punctuation and articles. What is done is kept in DIR/unfinished until the
    report is written, for --resume.

    \b
    What is printed, in points of 100 questions unless it says otherwise:
      accuracy         right answers; image withheld: the same model shown a
                       grey image; majority: each question's most frequent
                       answer
      Accuracy         right answers after the erasure, or with contrast
      Cost             accuracy lost by the erasure: clean less erased
      Gain             accuracy won by contrast over plain decoding
      95 % interval    of that cost or gain, as wide as questions that share
                       a picture or a wording make it
      p (Holm)         chance of so large a change where there is none,
                       adjusted for all rows of the table
      K, n             centroids; questions
      mean gain        over tasks: fixed, one setting chosen in advance; cv,
                       each task's chosen on the others; best, an upper bound
      pictures         distinct images by content; copies are one picture

    \b
    Examples:
      tccd probe replacement --model ./model --reference no-vision \\
        --data easy-vqa --limit 2000 --out report
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --reference all --alpha-cd -1,0.5,1,2 --out report
      tccd probe replacement --model owner/name --bank bank.safetensors \\
        --data questions.jsonl --layers text=12,vision=16 \\
        --alphas 0,0.2,0.4 --alpha-cd 0.5,1,2 --controls --out report --json
    """
    choice, columns = parse_layers("all" if layers is None else layers), parse_columns(column)
    _check_out(out)

    from probes.asking.journal import FOLDER, discard
    from probes.replacement import run
    from probes.replacement.grid import Grid, held_layers
    from probes.replacement.sources import able
    from probes.report.files import write_report
    from tccd.centroids.bank import CentroidBank
    from tccd.data import load_samples
    from tccd.loading import load_model
    from tccd.locking import locked

    files = bank or []
    banks = {name: CentroidBank.load(file) for name, file in _names(files).items()}
    references, strengths = _contrasts(reference, alpha_cd, able(banks.values()), bool(banks))
    grid = Grid(
        layers={m: held_layers(banks.values(), m) if asked is None else asked for m, asked in choice.items()},
        alphas=parse_numbers(alphas, "--alphas"),
        segments=parse_segments(segments),
        references=references,
        alpha_cd=strengths,
        beta=parse_numbers(beta, "--beta"),
        gate=gate.value if gate else None,
        gate_thresholds=parse_numbers(gate_threshold, "--gate-threshold"),
        controls=controls,
        seed=seed,
    )
    with locked(out, "tccd probe replacement"), _going_on(out / FOLDER), progress() as report:
        samples = load_samples(
            data,
            split=split,
            limit=limit,
            seed=seed,
            revision=data_revision,
            prompt=prompt,
            columns=columns,
            purpose="probe",
        )
        loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
        result = run(
            loaded.model,
            loaded.processor,
            samples,
            banks,
            grid,
            batch_size=batch_size,
            fitted_on=fitted_on,
            journal=out / FOLDER,
            resume=resume,
            progress=partial(report, "ask"),
        )
        said = {"model": model, "revision": revision, "limit": limit, "prompt": prompt, "batch_size": batch_size}
        result["config"] |= said | {"bank": [str(file) for file in files]} | _ran_on(samples, loaded.model)
        written = write_report(result, out, held=True)
        discard(out / FOLDER)
    _tell(result, written, as_json)


def _contrasts(
    reference: Sequence[str] | None, alpha_cd: str | None, able: Sequence[str], banked: bool
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """References and strengths of the contrast, as they were asked for."""
    if not reference and not banked:
        raise ConfigError(
            "neither --bank nor --reference, so there is nothing to measure; try --reference no-vision, or all"
        )
    strengths = parse_numbers((STRENGTHS if reference else "") if alpha_cd is None else alpha_cd, "--alpha-cd")
    if reference and not strengths:
        raise ConfigError(f"--reference says what to contrast with, and --alpha-cd no strength; try {STRENGTHS}")
    return listed(reference, able) if reference else (TEXT,), strengths


def _check_out(out: Path) -> None:
    """Refuse, before any work, a place or an installation in which no report can be written."""
    from probes.report.files import JSON, check_tools
    from tccd.atomic import check_writable

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for report.json and report.html")
    check_tools()
    check_writable(out / JSON)


def _ran_on(samples: Samples, model: Any) -> dict[str, Any]:
    """What was settled of the data, and where the model ran."""
    return {
        "data": samples.source,
        "split": samples.split,
        "data_revision": samples.revision,
        "device": str(model.device),
        "dtype": str(model.dtype),
    }


def _tell(result: Mapping[str, Any], files: Sequence[Path], as_json: bool) -> None:
    from probes.report.data import told

    if as_json:
        parts = (
            "models",
            "data",
            "warnings",
            "cells",
            "controls",
            "ratio",
            "tccd_cells",
            "tccd_controls",
            "protocols",
        )
        shown = {part: result[part] for part in parts if part in result}
        print_json(shown | {"files": [str(file) for file in files]})
        return
    show(result, files)
    for sentence in told(result):
        output().print(sentence, markup=False, soft_wrap=True)


@contextmanager
def _going_on(journal: Path) -> Iterator[None]:
    """Lets an error of writing say how to go on from what is kept."""
    from probes.asking.journal import begun
    from tccd.atomic import unwritable

    try:
        yield
    except OSError as error:
        if not isinstance(error, WriteError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = Path(error.filename or journal.parent)
        told = error if isinstance(error, WriteError) else unwritable(place, error)
        if begun(journal):
            kept = f"What was answered so far is kept in {journal}; go on from it with --resume"
            told = WriteError(error.errno, f"{told}. {kept}")
            told.filename = str(place)
        raise told from error


def _names(files: Sequence[Path]) -> dict[str, Path]:
    """What the report calls each bank: its file's name where that tells them apart."""
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(f"--bank: {', '.join(names)}; expected each bank once")
    return dict(zip(names, files, strict=True))
