"""`tccd probe advise` and `tccd probe compare`: what is made of reports that are there, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.console import AsJson, output, print_json
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Report = Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of a probe, or its folder.")]
Reports = Annotated[list[Path], typer.Argument(metavar="REPORT...", help="report.json files, or their folders.")]


def advise(
    report: Report,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model of the report; all of them by default.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the pictures: one judges, the others choose.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and of the test.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Recommend contrast on, with which reference at which settings, or off, with the evidence.

    \b
    The choice is over all references, signs and settings that were measured.
    "On" needs a setting whose gain is more than chance gives the best of so
    many: adjusted p of at most 0.02, with questions that share a picture or
    a question string taken together. And settings chosen on some folds of the
    pictures must gain on the others.

    \b
    Held out: gain on pictures that did not choose. Their question strings
    were seen. p: of no difference. Power: how often a true gain of that size
    would be told "on" here.

    \b
    Examples:
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --reference all --alpha-cd -1,0.5,1,2 --out report
      tccd probe advise report
      tccd probe advise report/report.json --folds 10 --json
    """
    from probes.advise import advise as judge
    from probes.compare import read_report

    result = read_report(report)
    wanted = list(result["models"]) if model is None else [model]
    found = [judge(result, name, n_folds=folds, seed=seed) for name in wanted]
    if as_json:
        print_json({"advice": found})
        return
    for advice in found:
        _show_advice(advice)


def compare(
    reports: Reports,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page, its JSON and CSV.")],
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put several models' reports in one table and one page.

    \b
    The models must have answered the same questions. Writes report.json,
    report.html and CSV tables. With --json, prints the table, and every two
    models by the paired difference of accuracy and of both costs.

    \b
    Examples:
      tccd probe compare llava/report.json qwen/report.json --out compared
      tccd probe compare reports/* --title "Three families" --out compared --json
    """
    from probes.compare import compare as merge
    from probes.compare import read_report
    from probes.report import write_report
    from probes.report.pairs import between_models
    from probes.report.summary import flat_model, summarise

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for report.json and report.html")
    if any(out.resolve() in (path.resolve(), path.resolve().parent) for path in reports):
        raise ConfigError(
            f"--out {out} holds a report that is compared, and would replace it; expected another folder"
        )
    merged = merge({str(path): read_report(path) for path in reports}, title)
    files = write_report(merged, out)
    summary = summarise(merged)
    if as_json:
        found = {"models": [flat_model(row) for row in summary], "differences": between_models(merged)}
        print_json(found | {"files": [str(file) for file in files]})
    else:
        _show_models(summary)
        _show_differences(between_models(merged))
        for warning in merged.get("warnings") or ():
            output().print(f"Warning: {warning['model']}: {warning['text']}", markup=False, soft_wrap=True)
        for file in files:
            output().print(str(file), markup=False, soft_wrap=True)


def _show_advice(advice: Mapping[str, Any]) -> None:
    from rich.table import Table

    console = output()
    verdict = "[bold green]on[/]" if advice["on"] else "[bold]off[/]"
    console.print(f"Contrast for {_plain(advice['model'])}: {verdict}", soft_wrap=True)
    if advice["on"]:
        told = [", ".join(f"{name} = {value}" for name, value in advice["settings"].items())]
        told += [f"costs, beside plain decoding: {advice['cost']}"]
        told += [f"{engine}: {line}" for engine, line in advice["use"].items()]
        for line in told:
            console.print("  " + _plain(line), soft_wrap=True)
    console.print("  " + _plain(advice["reason"]), soft_wrap=True)
    if advice["runner_up"]:
        console.print("  " + _plain(_second(advice["runner_up"])), soft_wrap=True)
    about = f"{advice['held_out']['n']:,} questions about {advice['n_images']:,} pictures"
    if advice["n_question_strings"] is not None:
        about += f", {advice['n_question_strings']:,} question strings"
    console.print(
        f"  {advice['n_settings']} settings, {advice['n_folds']} folds of the pictures; {about}", soft_wrap=True
    )
    flattering = f"in-sample gain (oracle upper bound) {100 * advice['in_sample_delta']:+.1f} points"
    console.print(f"  {flattering}; {power_of(advice)}", soft_wrap=True)
    for warning in advice["warnings"]:
        console.print("  Mind: " + _plain(warning["text"]), soft_wrap=True)
    if len(advice["by_reference"]) > 1:
        console.print(_references(advice["by_reference"]))
    table = Table("Held-out pictures", "n", "Plain", "Contrast", "Gain", "95 % interval", "p")
    held_out = advice["held_out"]
    for row in ({"task": "all", **held_out}, *held_out["by_task"]):
        low, high = row["ci95"]
        table.add_row(
            _plain(row["task"]),
            str(row["n"]),
            *(f"{100 * row[name]:.1f}" for name in ("baseline", "accuracy")),
            f"{100 * row['delta']:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{row['p_value']:.2g}",
        )
    console.print(table)


def _second(one: Mapping[str, Any]) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in one["behind_ci95"])
    told = (
        f"runner-up: {one['reference']}, {100 * one['behind']:.1f} points behind (95 % interval {low} to {high})"
    )
    return f"{told}; costs {one['cost']}"


def _references(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each reference by itself."""
    from rich.table import Table

    table = Table("Reference", "Held-out gain", "95 % interval", "p, adjusted", "Most right answers at", "Costs")
    for row in rows:
        low, high = row["held_out"]["ci95"]
        apart = {"reference", "bank"}
        at = ", ".join(f"{name} = {value}" for name, value in row["settings"].items() if name not in apart)
        table.add_row(
            _plain(row["reference"]),
            f"{100 * row['held_out']['delta']:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{row['p_adjusted']:.2g}",
            _plain(at),
            _plain(row["cost"]),
        )
    return table


def power_of(advice: Mapping[str, Any]) -> str:
    """How large a gain the questions at hand can tell from none."""
    gains, found = (", ".join(f"{100 * one[key]:.0f}" for one in advice["power"]) for key in ("gain", "power"))
    return f"power: true gains of {gains} points would be found in about {found} % of such data sets"


def _show_models(summary: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from probes.report.summary import flat_model

    measures = {
        "Family": "family",
        "Accuracy": "accuracy",
        "Blind": "blind",
        "Text cost": "text_cost",
        "Vision cost": "vision_cost",
        "Text cost / vision cost": "ratio",
        "Contrast: fixed": "delta_fixed",
        "Contrast: cv": "delta_cv",
        "Contrast: leave-one-model-out": "delta_leave_one_model_out",
        "Contrast: best (oracle upper bound)": "delta_best_oracle_upper_bound",
        "Contrast: held out": "held_out_delta",
        "Advice": "advice",
        "Reference advised": "advised_reference",
    }
    rows = [flat_model(row) for row in summary]
    table = Table("Measure")
    for row in rows:
        table.add_column(_plain(row["model"]), justify="right", overflow="fold")
    for title, key in measures.items():
        table.add_row(title, *(_figure(key, row.get(key)) for row in rows))
    output().print(table)


def _show_differences(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    from probes.report.pairs import MEASURES

    if not rows:
        return
    table = Table(
        "First less second", "Of", "Points", "95 % interval", "p (Holm)", title="Two models, by difference"
    )
    for row in rows:
        low, high = (f"{100 * bound:+.1f}" for bound in row["ci95"])
        names = " less ".join(map(_plain, row["models"]))
        figures = f"{100 * row['difference']:+.1f}", f"{low} to {high}", f"{row['p_holm']:.2g}"
        table.add_row(names, MEASURES[row["measure"]], *figures)
    output().print(table)


def _figure(key: str, value: Any) -> str:
    """Points where it is a fraction."""
    if value is None or isinstance(value, str):
        return _plain(value or "-")
    return f"{value:.1f}" if key == "ratio" else f"{100 * value:.1f}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
