"""The questions that were asked, and each one's outcomes: what intervals and advice are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from probes.report.section import Report, Result, Section
from probes.report.tables import table
from probes.report.values import Bits, Part, impossible, model_validator
from tccd.errors import DataError

COLUMNS = ("model", "id", "image_id", "picture", "prompt", "task", "answer", "plain", "right", "blind_right")


class Asked(Part):
    """Columns of one entry a question: `picture` are digests of what the images show, `plain` is the text that was
    answered, `right` and `blind_right` are 0 or 1.
    """

    id: list[str]
    image_id: list[str]
    task: list[str]
    answer: list[str]
    plain: list[str]
    right: Bits
    blind_right: Bits = ""
    picture: list[str] = []
    prompt: list[str] = []

    @model_validator(mode="after")
    def _as_long_as_right(self) -> Asked:
        columns = {**{name: getattr(self, name) for name in self.model_fields_set}, **(self.model_extra or {})}
        for name, column in columns.items():
            if isinstance(column, list | str) and len(column) != len(self.right):
                raise impossible(f".{name} has {len(column)} entries, but right has {len(self.right)}")
        return self


class Questions(Part):
    """By model. The outcomes `right` of any row stand in the order of these."""

    questions: dict[str, Asked] = {}


class QuestionsSection(Section):
    """Nothing on the page; a CSV file."""

    name = "questions"
    data = Questions
    heavy = frozenset({"questions"})
    files: ClassVar[Mapping[str, str]] = {"report-questions.csv": "one row a question"}

    def check(self, result: Result) -> None:
        """Rows of any section hold as many outcomes as their model was asked questions."""
        asked = {model: len(of["right"]) for model, of in (result.get("questions") or {}).items()}
        for part, rows in result.items():
            for index, row in enumerate(rows if isinstance(rows, list) else ()):
                n = asked.get(row.get("model")) if isinstance(row, dict) else None
                if n is not None and len(row.get("right") or "0" * n) != n:
                    raise DataError(
                        f"result.{part}[{index}] has outcomes of {len(row['right'])} questions, not {n}"
                    )

    def tables(self, report: Report) -> Mapping[str, str]:
        """A row a question."""
        return {"report-questions.csv": table(COLUMNS, _flat(report.result))}


def _flat(result: Result) -> Iterator[dict[str, Any]]:
    for model, columns in (result.get("questions") or {}).items():
        for index in range(len(columns["id"])):
            yield {"model": model} | {name: of[index] for name, of in columns.items() if name in COLUMNS}
