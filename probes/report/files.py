"""Write a report's files so that a reader finds all of the old one or all of the new one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from probes.report import sections
from probes.report.page import load_templates, render
from probes.report.publish import publish
from probes.report.schema import dumps, plain, validate
from probes.report.section import Report
from tccd.errors import require
from tccd.locking import locked

PAGE = "report.html"
JSON = "report.json"


def write_report(
    result: Mapping[str, Any], out_dir: str | os.PathLike[str], *, held: bool = False
) -> tuple[Path, ...]:
    """Write `report.json`, `report.html` and CSV tables into a folder, which is made if need be.

    The set replaces its predecessor in one step (see `probes.report.publish`): a failure leaves the old files as
    they were, and a process killed in the middle leaves the old report or the new one. A table that an earlier
    report left there and this one lacks is removed.

    Args:
        result: see `probes.report.schema`.
        out_dir: folder of the files.
        held: whether the caller holds the folder already, by `tccd.locking.locked`.

    Returns:
        Paths: the JSON file, the page, then the tables.

    Raises:
        ConfigError, DataError: the result is not one; see `validate`.
        BusyError: another run holds the folder.
        MissingExtraError: jinja2 or matplotlib is not installed.
        WriteError: the folder can't be written, or the disk is full.
    """
    validate(result)
    result = plain(result)
    report = Report(result)
    tables = sections.csv_tables(report)
    text = dumps(result)
    # The JSON comes last: a program that waits for it finds the rest in place.
    contents = {PAGE: render(report, tables, source=text), **tables, JSON: text}
    folder = Path(out_dir)
    with nullcontext() if held else locked(folder, "writing a report"):
        publish(folder, {name: text.encode() for name, text in contents.items()}, (PAGE, JSON, *sections.files()))
    return tuple(folder / name for name in (JSON, PAGE, *tables))


def check_tools() -> None:
    """See that all is there that a report is made with, before hours are spent on what it tells.

    Raises:
        MissingExtraError: a package of the extra `report` is not installed.
    """
    for module in ("jinja2", "markupsafe", "matplotlib", "pydantic", "scipy", "statsmodels"):
        require(module, "report")
    load_templates()
