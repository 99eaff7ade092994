"""`python -m eval.paper REPORT...`: what `eval/paper.sh` measured, beside what arXiv 2604.14363 published."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from probes.compare import read_report
from tccd.errors import ConfigError, DataError
from tccd.modality import Modality

#: arXiv 2604.14363: means over seven models and six tasks of BLINK, with the best of eight alpha_interp by task.
PUBLISHED = {"text cost": 0.2589, "vision cost": 0.0652, "ratio": 3.97, "best single gain": 0.1694}
PUBLISHED_ON = "blink"

#: What is erased of each modality.
SEGMENT: dict[Modality, str] = {"text": "all", "vision": "span"}

#: The published fixed setting of TCCD.
ALPHA_INTERP, ALPHA_CD = 0.4, 1.0


@dataclass(frozen=True)
class TaskFigures:
    """One task of one benchmark with one model.

    Attributes:
        model, data, task: which.
        n: questions.
        text_cost, vision_cost: accuracy lost at alpha_interp 0, as fractions.
        fixed: gain of TCCD at the published setting.
        best: the largest gain over alpha_interp: an oracle upper bound.
    """

    model: str
    data: str
    task: str
    n: int
    text_cost: float
    vision_cost: float
    fixed: float
    best: float


def figures(report: Mapping[str, Any], where: str) -> list[TaskFigures]:
    """What a report measured under the published protocol, by model and task.

    Args:
        report: of `tccd probe replacement`, as `eval/paper.sh` calls it.
        where: its place, for errors.

    Raises:
        DataError: a measurement of the protocol is missing, or there are several, as with two banks.
    """
    data = str(report["config"].get("data", where))
    rows = []
    for model in report["models"]:
        text, vision = (_cost_by_task(report, model, modality, where) for modality in ("text", "vision"))
        contrasted = [
            cell
            for cell in report.get("tccd_cells", ())
            if cell["model"] == model and cell["alpha_cd"] == ALPHA_CD and not cell["beta"] and not cell["gate"]
        ]
        fixed = _gains(_one(contrasted, lambda c: c["alpha_interp"] == ALPHA_INTERP, f"{where}: TCCD, {model}"))
        every = [_gains(cell) for cell in contrasted]
        rows += [
            TaskFigures(
                model=model,
                data=data,
                task=task,
                n=n,
                text_cost=cost,
                vision_cost=vision[task][1],
                fixed=fixed[task],
                best=max(gains[task] for gains in every),
            )
            for task, (n, cost) in text.items()
        ]
    return rows


def summary(rows: Sequence[TaskFigures]) -> dict[str, float | None]:
    """The published summary's figures: unweighted means over models and tasks.

    Returns:
        As `PUBLISHED`; the ratio is None where vision costs nothing on the mean.
    """
    text, vision = (statistics.fmean(getattr(row, name) for row in rows) for name in ("text_cost", "vision_cost"))
    return {
        "text cost": text,
        "vision cost": vision,
        "ratio": text / vision if vision > 0 else None,
        "best single gain": max(row.best for row in rows),
    }


def read_expected(argument: str) -> tuple[str, dict[str, dict[str, float]]]:
    """`MODEL=FILE` -> the model, and task -> its published figures, named as in `TaskFigures`.

    Raises:
        ConfigError: not of this form.
        DataError: the file is not one of the authors' per-model results.
        OSError: it can't be read.
    """
    model, found, file = argument.partition("=")
    if not found or not model or not file:
        raise ConfigError(f"--expected {argument!r}; expected MODEL=FILE")
    try:
        released = json.loads(Path(file).read_text(encoding="utf-8"))
        return model, {
            task: {
                "text_cost": cost["text_centroid_cost"],
                "vision_cost": cost["vis_centroid_cost"],
                "fixed": released["alpha_sweep"][task]["alphas"][str(ALPHA_INTERP)]["delta"],
                "best": released["alpha_sweep"][task]["best_delta"],
            }
            for task, cost in released["sufficiency"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a released result ({type(error).__name__}: {error}); expected the form of "
            "demo/fixtures/qwen_expected.json of github.com/yahskapar/centroid-erasure"
        ) from error


def _cost_by_task(
    report: Mapping[str, Any], model: str, modality: Modality, where: str
) -> dict[str, tuple[int, float]]:
    """Task -> questions, and centroid cost at full collapse."""
    cell = _one(
        report["cells"],
        lambda c: (
            (c["model"], c["modality"], c["alpha_interp"], c["segment"])
            == (model, modality, 0.0, SEGMENT[modality])
        ),
        f"{where}: {modality} cost, {model}",
    )
    return {row["task"]: (row["n"], row["baseline"] - row["accuracy"]) for row in cell["by_task"]}


def _gains(cell: Mapping[str, Any]) -> dict[str, float]:
    return {row["task"]: row["accuracy"] - row["baseline"] for row in cell["by_task"]}


def _one(cells: Sequence[Any], wanted: Callable[[Any], bool], where: str) -> Mapping[str, Any]:
    found = [cell for cell in cells if wanted(cell)]
    if len(found) != 1:
        raise DataError(
            f"{where} was measured in {len(found)} cells of the published setting; expected one, as eval/paper.sh "
            "measures it"
        )
    return found[0]


def _points(value: float | None, published: float | None = None) -> str:
    shown = "not estimable" if value is None else f"{100 * value:+.1f}"
    return shown if published is None else f"{shown} ({100 * published:+.1f})"


def _task_table(rows: Sequence[TaskFigures], expected: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    table = Table(
        *("Model", "Data", "Task", "n", "Text cost", "Vision cost"),
        *(f"TCCD at {ALPHA_INTERP}", "TCCD, best (oracle upper bound)"),
        title="Points of accuracy; in brackets as published, where known",
    )
    for row in rows:
        known = expected.get(row.model, {}).get(row.task, {}) if row.data == PUBLISHED_ON else {}
        names = ("text_cost", "vision_cost", "fixed", "best")
        cells = (_points(getattr(row, name), known.get(name)) for name in names)
        table.add_row(row.model, row.data, row.task, str(row.n), *cells)
    return table


def _summary_table(rows: Sequence[TaskFigures]) -> Table:
    models = len({row.model for row in rows})
    table = Table("", f"Measured, {models} model{'s' * (models > 1)}", "Published, seven models")
    table.title = f"{PUBLISHED_ON}: means over tasks"
    for name, value in summary(rows).items():
        ratio = name == "ratio" and value is not None
        table.add_row(
            name,
            f"{value:.2f}" if ratio else _points(value),
            f"{PUBLISHED[name]:.2f}" if name == "ratio" else _points(PUBLISHED[name]),
        )
    return table


def tables(reports: Sequence[Path], expected: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Table]:
    """The printed tables: every task, then the published summary where its benchmark was measured.

    Raises:
        ConfigError, DataError, OSError: see `figures` and `probes.compare.read_report`; or figures are expected
            of a model that no report measured.
    """
    rows = [row for path in reports for row in figures(read_report(path), str(path))]
    unknown = expected.keys() - {row.model for row in rows}
    if unknown:
        raise ConfigError(
            f"--expected names {', '.join(sorted(unknown))}; the reports are of "
            f"{', '.join(sorted({row.model for row in rows}))}"
        )
    yield _task_table(rows, expected)
    published = [row for row in rows if row.data == PUBLISHED_ON]
    if published:
        yield _summary_table(published)


def main(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="report.json files, or their folders.")
    ],
    expected: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=FILE", help="A model's figures by task as the authors release them."),
    ] = None,
) -> None:
    """Print the figures of arXiv 2604.14363 beside those of reports that `eval/paper.sh` wrote."""
    console = Console(width=None if Console().is_terminal else 160)
    for table in tables(reports, dict(map(read_expected, expected or ()))):
        console.print(table)


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
