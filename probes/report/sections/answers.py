"""Which answers were given, clean and erased, beside the right ones: a collapse onto one is seen here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from probes.report import figures
from probes.report.charts import share
from probes.report.figures import Group
from probes.report.prose import span
from probes.report.section import Report, Result, Section
from probes.report.summary import Row, summarise
from probes.report.tables import table
from probes.report.values import Part
from tccd.errors import require

MOST_LABELS = 8
COLUMNS = ("model", "answered_by", "label", "questions")


class AnswersSection(Section):
    """The share of each answer, clean and under the cells that are compared; no part of the JSON is its own."""

    name = "answers"
    data = Part
    files: ClassVar[Mapping[str, str]] = {"report-labels.csv": "one row an answer given"}

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """A drawing and a table a model."""
        markup = require("markupsafe", "report").Markup
        shown = (_shown(report.result, index, row, markup) for index, row in enumerate(report.of(summarise)))
        labels = [one for one in shown if one]
        return {"labels": labels} if labels else None

    def tables(self, report: Report) -> Mapping[str, str]:
        """A row an answer given."""
        return {"report-labels.csv": table(COLUMNS, _flat(report.result, report.of(summarise)))}


def _shown(result: Result, index: int, row: Row, markup: Callable[[str], Any]) -> dict[str, Any] | None:
    model = result["models"][row["model"]]
    given = {"plain": model.get("labels")} | {m: (row[m] or {}).get("labels") for m in ("text", "vision")}
    counts = {name: of["counts"] for name, of in given.items() if of}
    if not counts:
        return None
    truth = (model.get("truth") or {}).get("counts")
    total = Counter(truth or {})
    for of in counts.values():
        total.update(of)
    words = [word for word, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    rows = [_label(word, {word}, counts, truth) for word in words[:MOST_LABELS]]
    if rest := set(words[MOST_LABELS:]):
        rows.append(_label(f"{len(rest)} other answers", rest, counts, truth))
    groups = []
    for of in rows:
        bars = [share(name, part["share"], part["n"]) for name, part in of["given"].items()]
        groups.append(Group(of["label"], "", bars, of["truth"]))
    svg = markup(figures.bars(groups, f"Share of each answer, {row['model']}.", f"label{index}-"))
    n = span(part["n"] for of in rows for part in of["given"].values())
    entropy = {k: v for k, v in row["entropy"].items() if v is not None}
    return {"model": row["model"], "rows": rows, "n": n, "svg": svg, "entropy": entropy}


def _label(
    title: str, words: set[str], counts: Mapping[str, Mapping[str, int]], truth: Mapping[str, int] | None
) -> dict[str, Any]:
    def part(of: Mapping[str, int]) -> dict[str, Any]:
        n = sum(of.values())
        return {"share": sum(of.get(word, 0) for word in words) / n, "n": n}

    given = {name: part(of) for name, of in counts.items()}
    return {"label": title or "(nothing)", "given": given, "truth": part(truth)["share"] if truth else None}


def _flat(result: Result, summary: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in summary:
        model = result["models"][row["model"]]
        for source, of, key in (
            ("truth", model, "truth"),
            ("clean", model, "labels"),
            ("text erased", row["text"], "labels"),
            ("vision erased", row["vision"], "labels"),
        ):
            for label, count in (((of or {}).get(key) or {}).get("counts") or {}).items():
                yield {"model": row["model"], "answered_by": source, "label": label, "questions": count}
