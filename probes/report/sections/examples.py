"""Examples: single questions with their picture, for people to look at."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from probes.report.pictures import small
from probes.report.section import Report, Result, Section
from probes.report.sections.controls import names_cell
from probes.report.values import Fraction, Part, Png, Whole

MOST_EXAMPLES = 24


class ErasedAnswer(Part):
    """The answer under the erasure of cell number `cell`."""

    cell: Whole
    answer: str


class Example(Part):
    """One question: its picture as a `data:` PNG, the right answer, and those given."""

    model: str
    image: Png
    prompt: str
    answer: str
    plain: str
    tccd: str = ""
    plain_probability: dict[str, Fraction] | None = None
    tccd_probability: dict[str, Fraction] | None = None
    erased: list[ErasedAnswer] = []


class Examples(Part):
    """In the order that they are shown in, model by model."""

    examples: list[Example] = []


class ExamplesSection(Section):
    """Pictures, questions and answers, the same number of each model."""

    name = "examples"
    data = Examples
    heavy = frozenset({"image"})

    def check(self, result: Result) -> None:
        """Answers are those under cells of the model."""
        for index, example in enumerate(result.get("examples") or ()):
            for erased in example.get("erased") or ():
                names_cell(result, f"examples[{index}]", example["model"], erased["cell"])

    def shifted(self, result: Result, before: Mapping[str, int]) -> dict[str, Any]:
        """Cells are numbered on from those before."""
        return {
            part: [
                {**row, "erased": [{**e, "cell": e["cell"] + before["cells"]} for e in row.get("erased") or ()]}
                for row in rows
            ]
            for part, rows in super().shifted(result, before).items()
        }

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """Examples with small pictures."""
        by_model: dict[str, list[Mapping[str, Any]]] = {}
        for example in report.result.get("examples") or ():
            by_model.setdefault(example["model"], []).append(example)
        turns = itertools.zip_longest(*by_model.values())
        chosen = [example for turn in turns for example in turn if example is not None][:MOST_EXAMPLES]
        ordered = [example for model in by_model for example in chosen if example["model"] == model]
        return {"examples": [_shown(report.result, example) for example in ordered]} if ordered else None


def _shown(result: Result, example: Mapping[str, Any]) -> dict[str, Any]:
    truth = example["answer"].strip().casefold()

    def side(key: str, label: str, where: str, answer: str, words: Mapping[str, float] | None) -> dict[str, Any]:
        top = sorted((words or {}).items(), key=lambda word: (-word[1], word[0]))[:3]
        right = answer.strip().casefold() == truth
        return {"key": key, "label": label, "where": where, "answer": answer, "right": right, "words": top}

    clean = "nothing erased" if example.get("erased") else ""
    sides = [side("plain", "plain", clean, example["plain"], example.get("plain_probability"))]
    if "tccd" in example:
        sides.append(side("tccd", "TCCD", "", example["tccd"], example.get("tccd_probability")))
    for erased in example.get("erased") or ():
        cell = result["cells"][erased["cell"]]
        label = f"{cell['modality']} erased"
        sides.append(side(cell["modality"], label, f"layer {cell['layer']}", erased["answer"], None))
    return {**example, "image": small(example["image"]), "sides": sides}
