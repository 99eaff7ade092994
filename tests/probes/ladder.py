"""A section made by the recipe in CONTRIBUTING.md: accuracy over the number of pictures shown."""

from __future__ import annotations

from probes.report.section import Section
from probes.report.tables import table
from probes.report.values import Fraction, Part, Whole


class Rung(Part):
    model: str
    shown: Whole
    accuracy: Fraction


class Ladder(Part):
    ladder: list[Rung] = []  # noqa: RUF012


class LadderSection(Section):
    name = "ladder"
    data = Ladder
    evidence = ("ladder",)
    files = {"report-ladder.csv": "one row a rung"}  # noqa: RUF012

    def answer(self, report):
        return [f"The ladder has {len(report.result['ladder'])} rungs."] if report.result.get("ladder") else []

    def findings(self, report, model):
        mine = [rung for rung in report.result.get("ladder") or () if rung["model"] == model]
        return [f"Its highest rung is {max(rung['shown'] for rung in mine)}."] if mine else []

    def context(self, report):
        rungs = report.result.get("ladder")
        return {"rungs": rungs} if rungs else None

    def tables(self, report):
        return {"report-ladder.csv": table(("model", "shown", "accuracy"), report.result.get("ladder") or ())}
