"""A result as one self-contained HTML page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from probes.references import name_of
from probes.report import prose, sections
from probes.report.downloads import downloads
from probes.report.section import Report, Result
from tccd.errors import require

_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "\u22120123456789")
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>')


def render(result: Result | Report, tables: Mapping[str, str] | None = None, source: str | None = None) -> str:
    """The page of a checked result, of one model or of many; every string in it is escaped.

    Args:
        result: see `probes.report.schema`.
        tables: of `probes.report.sections.csv_tables`, where they are there already.
        source: text of the report.json beside the page; the page tells its digest.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    report = Report.over(result)
    result = report.result
    tables = sections.csv_tables(report) if tables is None else tables
    environment = page_environment(_templates())
    environment.globals["findings"] = partial(sections.findings, report)
    markup = require("markupsafe", "report").Markup
    bodies = [
        environment.get_template(f"{section.name}.html.j2").render(context)
        for section in sections.SECTIONS
        if section.template is not None and (context := section.context(report)) is not None
    ]
    bodies.append(environment.get_template("run.html.j2").render(_of_the_run(result, tables, source)))
    return environment.get_template("page.html.j2").render(
        title=result["title"],
        created=datetime.fromisoformat(result["created"]).strftime("%d %B %Y, %H:%M").lstrip("0"),
        answer=sections.answer(report),
        warnings=_warnings(result),
        headings=[(at, markup(title)) for body in bodies for at, title in _HEADING.findall(body)],
        bodies=[markup(body) for body in bodies],
    )


def _warnings(result: Result) -> list[str]:
    """Sentences, the model named where there are several."""
    several = len(result["models"]) > 1
    found = []
    for warning in result.get("warnings") or ():
        text = warning["text"]
        told = f"{warning['model']}: {text}" if several else text[:1].upper() + text[1:]
        found.append(prose.minus(told) + ".")
    return found


def load_templates() -> None:
    """Parse every template of the page, so that one that is missing or broken is found before a run."""
    environment = page_environment(_templates())
    for name in environment.list_templates(extensions=["j2"]):
        environment.get_template(name)


def _of_the_run(result: Result, tables: Mapping[str, str], source: str | None) -> dict[str, Any]:
    return {
        "downloads": downloads(result, tables),
        "versions": result["versions"],
        "config": json.dumps(result["config"], indent=2, ensure_ascii=False),
        "digest": hashlib.sha256(source.encode()).hexdigest() if source is not None else None,
    }


def _templates() -> dict[str, str]:
    return {f"{s.name}.html.j2": text for s in sections.SECTIONS if (text := s.template) is not None}


def page_environment(own: Mapping[str, str]) -> Any:
    """A jinja2 environment with the page's frame, its macros and its filters.

    Args:
        own: templates beside these, text by name.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report")
    markup = require("markupsafe", "report").Markup
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.DictLoader(dict(own)), jinja2.PackageLoader("probes.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def typeset(text: str) -> Any:
        # Superscript characters come from a second font where the first lacks them; `<sup>` doesn't.
        escaped = re.sub(r"(\blayer|\bp|\bn|\bK|\balpha_\w+|=) (?=[=\d])", "\\1\u00a0", str(markup.escape(text)))
        escaped = re.sub(r"(?<=\d) (?=%)", "\u202f", escaped)
        return markup(re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"<sup>{m[0].translate(_LOWERED)}</sup>", escaped))

    environment.filters.update(
        typeset=typeset,
        points=prose.points,
        percent=prose.percent,
        interval=prose.interval,
        probability=prose.probability,
        settings=prose.settings,
        minus=prose.minus,
        shown=prose.shown,
        reference=name_of,
        count=lambda n: f"{n:,}",
    )
    return environment
