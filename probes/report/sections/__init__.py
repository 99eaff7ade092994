"""The sections of a report, in the order that they are read in."""

from __future__ import annotations

from probes.report.section import Report, Result, Section
from probes.report.sections.answers import AnswersSection
from probes.report.sections.chosen import ChosenSection
from probes.report.sections.contrast import ContrastSection
from probes.report.sections.controls import ControlsSection
from probes.report.sections.cost import CostSection
from probes.report.sections.examples import ExamplesSection
from probes.report.sections.listing import ListingSection
from probes.report.sections.measured import MeasuredSection
from probes.report.sections.questions import QuestionsSection
from probes.report.sections.tasks import TasksSection

SECTIONS: tuple[Section, ...] = (
    MeasuredSection(),
    CostSection(),
    TasksSection(),
    AnswersSection(),
    ControlsSection(),
    ContrastSection(),
    ChosenSection(),
    ExamplesSection(),
    ListingSection(),
    QuestionsSection(),
)


def answer(result: Result | Report) -> list[str]:
    """The whole result in a handful of sentences, over all models."""
    report = Report.over(result)
    return [sentence for section in SECTIONS for sentence in section.answer(report)]


def findings(result: Result | Report, model: str) -> list[str]:
    """What was found for one model, in full sentences with n, interval and test."""
    report = Report.over(result)
    return [sentence for section in SECTIONS for sentence in section.findings(report, model)]


def csv_tables(result: Result | Report) -> dict[str, str]:
    """CSV text by file name; a table without rows is left out.

    Args:
        result: a checked one.
    """
    report = Report.over(result)
    tables = {name: text for section in SECTIONS for name, text in section.tables(report).items()}
    return {name: text for name, text in tables.items() if text}


def files() -> dict[str, str]:
    """All CSV files that a report may have, with what each holds."""
    return {name: what for section in SECTIONS for name, what in section.files.items()}
