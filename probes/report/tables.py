"""CSV tables: what a section shows, for other programs. Accuracies, costs and gains are fractions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV by RFC 4180, or nothing for no rows; a spreadsheet must not take a label for a formula.

    Args:
        columns: names; what else a row holds is left out.
        rows: one a line.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    empty = True
    for row in rows:
        empty = False
        writer.writerow({name: _inert(row.get(name)) for name in columns})
    return "" if empty else out.getvalue()


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a report with its interval as `low` and `high`, and the entropy of its labels."""
    low, high = row.get("ci95") or (None, None)
    return {**row, "low": low, "high": high, "entropy": (row.get("labels") or {}).get("entropy")}


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
