"""A result as one self-contained HTML page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from probes.report import charts, parts, prose
from probes.report.data import told
from probes.report.downloads import downloads
from probes.report.summary import Row, summarise
from probes.report.tables import csv_tables
from tccd.errors import require

_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "\u22120123456789")


def render(
    result: Mapping[str, Any],
    summary: Sequence[Row] | None = None,
    tables: Mapping[str, str] | None = None,
    source: str | None = None,
) -> str:
    """The page of a validated result, of one model or of many; every string in it is escaped.

    Args:
        result: see `probes.report.schema`.
        summary: of `summarise`, where it is there already.
        tables: of `csv_tables`, where they are there already.
        source: text of the report.json beside the page; the page tells its digest.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    summary = summarise(result) if summary is None else summary
    tables = csv_tables(result, summary) if tables is None else tables
    environment = _environment()
    markup = require("markupsafe", "report").Markup
    heats = charts.heats(summary)
    conditions = {row["headline"].conditions for row in summary if row["headline"]}
    return environment.get_template("page.html.j2").render(
        title=result["title"],
        created=datetime.fromisoformat(result["created"]).strftime("%d %B %Y, %H:%M").lstrip("0"),
        answer=prose.answer(result) + prose.advised([row["advice"] for row in summary if row["advice"]]),
        warnings=[warning["text"] for warning in result.get("warnings") or ()],
        conditions=next(iter(conditions)) if len(conditions) == 1 else None,
        models=[{**row, "findings": prose.findings(result, row["model"])} for row in summary],
        families=parts.families(summary),
        differences=(pairs := parts.differences(result)),
        measures=parts.measures(pairs),
        withheld=sorted({row["blind"]["kind"] for row in summary if row["blind"] and "kind" in row["blind"]}),
        protocol_names=parts.protocol_names(summary),
        heats=heats,
        starred=any(cell and cell["sure"] for heat in heats for row in heat["rows"] for cell in row["cells"]),
        layers=charts.curves(summary, "layer", markup),
        doses=charts.curves(summary, "dose", markup),
        tasks=charts.tasks(summary, markup),
        blind_tasks=any("by_task" in (row["blind"] or {}) for row in summary),
        labels=charts.labels(result, summary, markup),
        controls=parts.controls(result),
        gains=charts.gains(result, summary),
        protocols=parts.protocols(summary),
        advice=[row["advice"] for row in summary if row["advice"]],
        runs=charts.runs(result, markup),
        examples=parts.examples(result),
        cells=parts.cells(result),
        contrasts=parts.contrasts(result),
        downloads=downloads(result, tables),
        versions=result["versions"],
        config=json.dumps(result["config"], indent=2, ensure_ascii=False),
        data=told(result),
        digest=hashlib.sha256(source.encode()).hexdigest() if source is not None else None,
        n_items=sum(map(len, (result.get("items") or {}).values())),
    )


def load_templates() -> None:
    """Parse every template of the page, so that one that is missing or broken is found before a run."""
    environment = _environment()
    for name in environment.list_templates(extensions=["j2"]):
        environment.get_template(name)


@cache  # reading the templates takes longer than filling them
def _environment() -> Any:
    jinja2 = require("jinja2", "report")
    markup = require("markupsafe", "report").Markup
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probes.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def typeset(text: str) -> Any:
        # Superscript characters come from a second font where the first lacks them; `<sup>` doesn't.
        escaped = re.sub(r"(\blayer|\bp|\bK|\balpha_\w+|=) (?=[=\d])", "\\1\u00a0", str(markup.escape(text)))
        return markup(re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"<sup>{m[0].translate(_LOWERED)}</sup>", escaped))

    environment.filters.update(
        typeset=typeset,
        points=prose.points,
        percent=prose.percent,
        interval=prose.interval,
        probability=prose.probability,
        settings=prose.settings,
        minus=prose.minus,
        count=lambda n: f"{n:,}",
    )
    return environment
