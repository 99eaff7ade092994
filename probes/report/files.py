"""Write a report's two files so that a reader never finds half of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.report.page import render
from probes.report.schema import dumps, plain, validate
from tccd.atomic import write_atomic


def write_report(result: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a folder, which is made if need be.

    Both are built before either is written, and each replaces its predecessor in one step: a failure leaves
    the old files as they were.

    Args:
        result: see `probes.report.schema`.
        out_dir: folder of the two files.

    Returns:
        Paths of the JSON file and of the page.

    Raises:
        ConfigError, DataError: the result is not one; see `validate`.
        MissingExtraError: jinja2 or matplotlib is not installed.
        OSError: the folder can't be written.
    """
    validate(result)
    result = plain(result)
    contents = {"report.json": dumps(result), "report.html": render(result)}
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())
    return folder / "report.json", folder / "report.html"
