"""Write a report's files so that a reader never finds half of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.report.downloads import WHAT
from probes.report.page import render
from probes.report.schema import dumps, plain, validate
from probes.report.summary import summarise
from probes.report.tables import csv_tables
from tccd.atomic import write_atomic


def write_report(result: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write `report.json`, `report.html` and CSV tables into a folder, which is made if need be.

    All are built before any is written, and each replaces its predecessor in one step: a failure leaves the
    old files as they were. A table that an earlier report left there and this one lacks is removed.

    Args:
        result: see `probes.report.schema`.
        out_dir: folder of the files.

    Returns:
        Paths: the JSON file, the page, then the tables.

    Raises:
        ConfigError, DataError: the result is not one; see `validate`.
        MissingExtraError: jinja2 or matplotlib is not installed.
        OSError: the folder can't be written.
    """
    validate(result)
    result = plain(result)
    summary = summarise(result)
    tables = csv_tables(result, summary)
    contents = {"report.json": dumps(result), "report.html": render(result, summary, tables), **tables}
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())
    for name in WHAT.keys() - contents.keys():
        (folder / name).unlink(missing_ok=True)
    return tuple(folder / name for name in contents)
