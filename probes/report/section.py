"""What a section of a report is: its part of the JSON, its words, its charts and tables, and its template.

The page, the CSV files, the check of the JSON and `tccd probe compare` ask each section in
`probes.report.sections.SECTIONS` in turn, and know none of them by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from probes.report.values import Part

Result = Mapping[str, Any]
Made = TypeVar("Made")


class Report:
    """A checked result, and what pure functions make of it, each made once."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self._made: dict[Callable[[Result], Any], Any] = {}

    @classmethod
    def over(cls, result: Result | Report) -> Report:
        """The report over a result; a report as it is."""
        return result if isinstance(result, Report) else cls(result)

    def of(self, make: Callable[[Result], Made]) -> Made:
        """What a function makes of the result."""
        if make not in self._made:
            self._made[make] = make(self.result)
        return self._made[make]


class Section:
    """One part of a report.

    A part of the JSON is a list of rows, each with its `model`, or a mapping by model. Where a section has a
    template, it is the file of the section's name beside its module.

    Attributes:
        name: of the section; its template is `<name>.html.j2`, where there is one.
        data: its part of the JSON: the fields are keys of the result. A field without a default must be there.
        files: names of the CSV files that it may write, with what each holds.
        heavy: keys, of the result or of rows, that the JSON inside the page leaves out. The CSV files of a section
            whose parts are among them stand beside the page alone.
        adjusted: lists of rows whose p-values are adjusted over the whole list, also of several reports.
        evidence: parts that tell something by themselves: a report has at least one of all sections' evidence.
    """

    name: ClassVar[str]
    data: ClassVar[type[Part]] = Part
    files: ClassVar[Mapping[str, str]] = {}
    heavy: ClassVar[frozenset[str]] = frozenset()
    adjusted: ClassVar[tuple[str, ...]] = ()
    evidence: ClassVar[tuple[str, ...]] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Keys of the result that are this section's."""
        return tuple(self.data.model_fields)

    @property
    def template(self) -> str | None:
        """The text of its template, or None."""
        file = Path(inspect.getfile(type(self))).with_name(f"{self.name}.html.j2")
        return file.read_text(encoding="utf-8") if file.exists() else None

    def check(self, result: Result) -> None:
        """Check what pydantic can't see: what this section's parts say of other parts. Each is sound by itself.

        Raises:
            ConfigError, DataError: says where.
        """

    def shifted(self, result: Result, before: Mapping[str, int]) -> dict[str, Any]:
        """Its parts of a result that is appended to others.

        Args:
            result: the one that is appended.
            before: part -> rows of it in the others; numbers of rows count on from there.
        """
        return {part: result[part] for part in self.parts if result.get(part)}

    def answer(self, report: Report) -> list[str]:
        """Sentences over all models, for the top of the page and the terminal."""
        return []

    def findings(self, report: Report, model: str) -> list[str]:
        """Sentences on one model, with n, interval and test."""
        return []

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """What its template is filled with, or None where it has nothing to show."""
        return None

    def tables(self, report: Report) -> Mapping[str, str]:
        """CSV text by file name; one without rows is left out. See `probes.report.tables.table`."""
        return {}
