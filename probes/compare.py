"""Several models' reports as one: checked to have asked the same questions, merged, and shown side by side."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probes.report import sections
from probes.report.envelope import envelope
from probes.report.publish import read_newest
from probes.report.schema import upgraded, validate
from probes.statistics.intervals import holm
from tccd.errors import ConfigError, DataError, TCCDError

Result = Mapping[str, Any]


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a report.

    Args:
        path: `report.json`, or the folder that holds it.

    Raises:
        DataError: not JSON, or values that can't be; names the file.
        ConfigError: another schema version, or something missing; names the file.
        OSError: no such file, or it can't be read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "report.json"
    try:
        result = json.loads(read_newest(file))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is not JSON ({error!s:.200}); expected the report.json of `tccd probe`"
        ) from error
    try:
        result = upgraded(result if isinstance(result, dict) else {})
        validate(result)
    except TCCDError as error:
        raise type(error)(f"{file}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} is nested too deep to be the report.json of `tccd probe`") from error
    return result


def compare(reports: Mapping[str, Result], title: str | None = None) -> dict[str, Any]:
    """Merge reports over the same questions into one of the same schema, which `probes.report` writes.

    p-values are adjusted anew, over all cells of all models.

    Args:
        reports: source, such as the file's name -> report, at least two.
        title: of the merged report.

    Raises:
        ConfigError: fewer than two reports.
        DataError: a model in two of them, or other questions asked.
    """
    if len(reports) < 2:
        raise ConfigError(f"{len(reports)} report to compare; expected at least two")
    _distinct(reports)
    _same_data(reports)
    models = [name for result in reports.values() for name in result["models"]]
    config = {source: dict(result["config"]) for source, result in reports.items()}
    title = title or f"What each modality is worth to {len(models)} models"
    merged: dict[str, Any] = {}
    for result in reports.values():
        _append(merged, result)
    for section in sections.SECTIONS:
        for part in section.adjusted:
            _adjust(merged.get(part) or ())
    return envelope(title, config, _versions(reports)) | merged


def _append(merged: dict[str, Any], result: Result) -> None:
    """Add each section's parts; what numbers rows counts on from those that are there."""
    found: dict[str, Any] = {"warnings": result.get("warnings") or []}
    before: dict[str, int] = defaultdict(int, {part: len(rows) for part, rows in merged.items()})
    for section in sections.SECTIONS:
        found |= section.shifted(result, before)
    for part, entries in found.items():
        if isinstance(entries, list):
            merged.setdefault(part, []).extend(map(dict, entries))
        else:
            merged.setdefault(part, {}).update(entries)


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    tested = [row for row in rows if row["p_value"] is not None]
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = float(adjusted)


def _distinct(reports: Mapping[str, Result]) -> None:
    seen: dict[str, str] = {}
    for source, result in reports.items():
        for model in result["models"]:
            if model in seen:
                raise DataError(
                    f"{seen[model]} and {source} both report the model {model}; expected each model once"
                )
            seen[model] = source


def _same_data(reports: Mapping[str, Result]) -> None:
    """Every model answered the same questions: the same ids with the same answers, or one line of config."""
    first_source, first = next(iter(reports.items()))
    for source, result in reports.items():
        if _asked(result) != _asked(first):
            raise DataError(
                f"{first_source} and {source} asked other questions ({_told(first)}; {_told(result)}); costs "
                "compare only over the same: run the probe with the same --data, --split, --limit and --seed"
            )


def _asked(result: Result) -> Any:
    questions = result.get("questions") or {}
    if questions:
        # Sorted: the order in which they were asked makes no difference.
        of = next(iter(questions.values()))
        return sorted(zip(of["id"], of["image_id"], of["answer"], strict=True))
    return [result["config"].get(name) for name in ("data", "split", "data_revision", "limit", "seed", "prompt")]


def _told(result: Result) -> str:
    config = result["config"]
    n = sorted({model["accuracy"]["n"] for model in result["models"].values()})
    data = " ".join(str(config[key]) for key in ("data", "split") if config.get(key))
    return f"{'/'.join(map(str, n))} of {data or 'unnamed data'}"


def _versions(reports: Mapping[str, Result]) -> dict[str, str]:
    """Each package's version, or versions where the reports differ."""
    found: dict[str, list[str]] = {}
    for result in reports.values():
        for package, version in result["versions"].items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return {package: ", ".join(versions) for package, versions in found.items()}
