"""A result as one self-contained HTML page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any

from probes.report import figures, prose
from probes.report.headline import Headline, headline
from probes.statistics import holm, wilson
from tccd.errors import require

_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "\u22120123456789")


def render(result: Mapping[str, Any]) -> str:
    """The page of a validated result; every string in it is escaped.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    jinja2 = require("jinja2", "report")
    markup = require("markupsafe", "report").Markup
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def typeset(text: str) -> Any:
        # Superscript characters come from a second font where the first lacks them; `<sup>` doesn't.
        escaped = re.sub(r"(\blayer|\bp|=) (?=[=\d])", "\\1\u00a0", str(markup.escape(text)))
        return markup(re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"<sup>{m[0].translate(_LOWERED)}</sup>", escaped))

    environment.filters.update(
        typeset=typeset,
        points=prose.points,
        percent=prose.percent,
        interval=prose.interval,
        probability=prose.probability,
    )
    chosen = {model: found for model in result["models"] if (found := headline(result, model))}
    limits = figures.cost_limits(list(chosen.values())) if chosen else (0.0, 1.0)
    same = len({found.conditions for found in chosen.values()}) == 1
    runs = result.get("tccd") or {}
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=result["title"],
        created=datetime.fromisoformat(result["created"]).strftime("%d %B %Y, %H:%M").lstrip("0"),
        answer=prose.answer(result),
        conditions=next(iter({found.conditions for found in chosen.values()})) if same else None,
        models=[_model(result, name, chosen.get(name)) for name in result["models"]],
        curves=[
            {
                "model": name,
                "slice": found,
                "n": _range(c["n"] for row in found.by_layer.values() for c in row),
                "baseline": _baseline(found),
                "svg": markup(figures.cost_by_layer(found, limits, f"cost{index}-")),
            }
            for index, (name, found) in enumerate(chosen.items())
        ],
        bars=[
            {
                "model": name,
                "n": _range(row["n"] for row in run["by_task"]),
                "svg": markup(figures.bars_by_task(name, run["by_task"], f"task{index}-")),
            }
            for index, (name, run) in enumerate(runs.items())
            if run.get("by_task")
        ],
        runs=[_run(name, run) for name, run in runs.items()],
        tasks=[table for found in chosen.values() if (table := _tasks(found))],
        examples=[_example(example) for example in result.get("examples", [])],
        cells=_cells(result),
        versions=result["versions"],
        config=json.dumps(result["config"], indent=2, ensure_ascii=False),
        n_items=sum(map(len, (result.get("items") or {}).values())),
    )


def _model(result: Mapping[str, Any], name: str, chosen: Headline | None) -> dict[str, Any]:
    model = result["models"][name]
    blind = model.get("blind")
    return {
        "name": name,
        "description": model["description"],
        "parameters": model.get("parameters"),
        "accuracy": model["accuracy"],
        "blind": blind and {**blind, "ci95": wilson(round(blind["accuracy"] * blind["n"]), blind["n"])},
        "text": chosen and chosen.text,
        "vision": chosen and chosen.vision,
        "conditions": chosen and chosen.conditions,
        "ratio": (result.get("ratio") or {}).get(name),
        "run": (result.get("tccd") or {}).get(name),
        "findings": prose.findings(result, name),
    }


def _run(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    rows = [("all", run), ("balanced", run.get("balanced")), ("minority", run.get("minority"))]
    return {
        "model": name,
        "settings": {key: _value(value) for key, value in run["settings"].items()},
        "chosen_on": run.get("chosen_on"),
        "rows": [(label, row) for label, row in rows if row],
        "counted": any("helped" in row and "harmed" in row for _, row in rows if row),
    }


def _tasks(found: Headline) -> dict[str, Any] | None:
    """Costs by task at the headline layer, one row a task, one column a modality."""
    rows: dict[str, dict[str, Any]] = {}
    for modality, cell in (("text", found.text), ("vision", found.vision)):
        for row in (cell or {}).get("by_task") or ():
            cost = row.get("cost", row["baseline"] - row["accuracy"])
            kept = rows.setdefault(row["task"], {"n": row["n"], "baseline": row["baseline"]})
            kept[modality] = {"cost": cost, "ci95": row.get("ci95")}
    if not rows:
        return None
    return {"model": found.model, "layer": found.layer, "conditions": found.conditions, "rows": rows}


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    truth = example["answer"].strip().casefold()
    sides = []
    for key, label in (("plain", "plain"), ("tccd", "TCCD")):
        words = example.get(f"{key}_probability") or {}
        sides.append(
            {
                "key": key,
                "label": label,
                "answer": example[key],
                "right": example[key].strip().casefold() == truth,
                "words": sorted(words.items(), key=lambda word: (-word[1], word[0]))[:3],
            }
        )
    return {**example, "sides": sides}


def _cells(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    tested = [cell for cell in result["cells"] if cell["p_value"] is not None]
    # One family: every cell of the report, over all models.
    adjusted = dict(zip(map(id, tested), holm([c["p_value"] for c in tested]), strict=True))
    tables = []
    for model in result["models"]:
        rows = [{**c, "holm": adjusted.get(id(c))} for c in result["cells"] if c["model"] == model]
        if rows:
            tables.append({"model": model, "rows": rows, "family": len(tested)})
    return tables


def _baseline(found: Headline) -> str:
    values = [cell["baseline"] for row in found.by_layer.values() for cell in row]
    low, high = prose.points(min(values)), prose.percent(max(values))
    return high if high.startswith(low) else f"{low} to {high}"


def _range(counts: Any) -> str:
    counts = sorted(set(counts))
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
