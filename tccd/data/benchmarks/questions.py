"""One function a benchmark: from its tables to its questions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tccd.data.benchmarks.letters import letter_prompt, letters, parse_letter
from tccd.data.benchmarks.tables import Picture, Row, Tables
from tccd.errors import DataError

#: The six tasks of BLINK that the paper measures, in its order.
BLINK_TASKS = (
    "Forensic_Detection",
    "Visual_Similarity",
    "Art_Style",
    "Counting",
    "Relative_Depth",
    "Spatial_Relation",
)
BLINK_IMAGES = ("image_1", "image_2", "image_3", "image_4")

YES_NO = ("Yes", "No")

#: `(a) Open (b) Closed`: what stands behind each label.
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question as its benchmark asks it.

    Attributes:
        id: unique within the benchmark, and the same in every load of one revision.
        prompt: the question with its lettered options.
        answer: one of `choices`.
        choices: the labels to choose among.
        task: the kind of question.
        pictures: what is asked about, at least one.
    """

    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...]
    task: str
    pictures: tuple[Picture, ...]


def blink(tables: Tables) -> Iterator[Question]:
    """BLINK (Fu et al., ECCV 2024, arXiv 2404.12390): 1 to 4 pictures a question, prompts ready made."""
    for task in BLINK_TASKS:
        table = tables.open(task)
        for row in table.rows(without=BLINK_IMAGES):
            choices = letters(len(row.texts("choices")), row.where)
            yield Question(
                id=f"{task}-{row.number}",
                prompt=row.text("prompt"),
                answer=parse_letter(row.text("answer"), choices, row.where),
                choices=choices,
                task=task,
                pictures=table.pictures(row, BLINK_IMAGES),
            )


def mmvp(tables: Tables) -> Iterator[Question]:
    """MMVP (Tong et al., CVPR 2024, arXiv 2401.06209): questions in a CSV file, each about `<Index>.jpg`.

    Pictures are found by their file's name: they load in the order 1, 10, 100, ..., and the questions in the
    order 1, 2, 3, ... Scores are by question; the benchmark's own also ask both questions of a pair.
    """
    images = tables.open(files="MMVP Images/*.jpg")
    by_name = {PurePosixPath(path).stem: number for number, path in enumerate(images.paths("image"))}
    for row in tables.open(files="Questions.csv").rows():
        index = row.text("Index")
        if index not in by_name:
            raise DataError(f"{row.where}: there is no picture {index}.jpg; found {len(by_name)} pictures")
        labels = _OPTION.findall(row.text("Options"))
        choices = letters(len(labels), row.where)
        if "".join(label for label, _ in labels).upper() != "".join(choices):
            raise DataError(f"{row.where}: Options is {row.text('Options')!r}; expected (a) ... (b) ...")
        yield Question(
            id=index,
            prompt=letter_prompt(row.text("Question"), [option for _, option in labels]),
            answer=parse_letter(row.text("Correct Answer"), choices, row.where),
            choices=choices,
            task="MMVP",
            pictures=(images.picture(by_name[index], "image"),),
        )


def cv_bench(tables: Tables) -> Iterator[Question]:
    """CV-Bench (Tong et al., NeurIPS 2024, arXiv 2406.16860): counting, relation, depth order, distance."""
    table = tables.open()
    for row in table.rows(without=("image",)):
        options = row.texts("choices")
        choices = letters(len(options), row.where)
        yield Question(
            id=str(row.number),
            prompt=letter_prompt(row.text("question"), options),
            answer=parse_letter(row.text("answer"), choices, row.where),
            choices=choices,
            task=row.text("task"),
            pictures=table.pictures(row, ("image",)),
        )


def pope(tables: Tables) -> Iterator[Question]:
    """POPE (Li et al., EMNLP 2023, arXiv 2305.10355): is such an object in the image? Tasks: its categories."""
    table = tables.open()
    for row in table.rows(without=("image",)):
        yield Question(
            id=str(row.number),
            prompt=letter_prompt(row.text("question"), ()),
            answer=_yes_no(row, row.text("answer")),
            choices=YES_NO,
            task=row.text("category"),
            pictures=table.pictures(row, ("image",)),
        )


def scienceqa_img(tables: Tables) -> Iterator[Question]:
    """ScienceQA's questions with an image (Lu et al., NeurIPS 2022, arXiv 2209.09513); the hint comes first."""
    table = tables.open()
    for row in table.rows(without=("image",)):
        options = row.texts("choices")
        choices = letters(len(options), row.where)
        question = "\n".join(part for part in (row.text("hint", empty=True), row.text("question")) if part)
        yield Question(
            id=str(row.number),
            prompt=letter_prompt(question, options),
            answer=choices[row.index("answer", len(options))],
            choices=choices,
            task=row.text("subject"),
            pictures=table.pictures(row, ("image",)),
        )


def medblink(tables: Tables) -> Iterator[Question]:
    """MedBLINK (Bigverdi et al., 2025, arXiv 2508.02951): eight tasks of medical perception.

    The data name no options. As published, a task's options are the answers that its questions have in this
    split, in alphabetical order; a task of yes and no is asked so.
    """
    table = tables.open()
    rows = list(table.rows(without=("image",)))
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.text("task")].add(row.text("answer").lower())
    for row in rows:
        task, answer = row.text("task"), row.text("answer").lower()
        options: Sequence[str] = sorted(answers[task])
        yes_no = answers[task] <= {"yes", "no"}
        choices = YES_NO if yes_no else letters(len(options), f"{row.where}, task {task}")
        yield Question(
            id=f"{task}-{row.number}",
            prompt=letter_prompt(row.text("question"), () if yes_no else options),
            answer=_yes_no(row, answer) if yes_no else choices[options.index(answer)],
            choices=choices,
            task=task,
            pictures=table.pictures(row, ("image",)),
        )


def _yes_no(row: Row, answer: str) -> str:
    known = {choice.lower(): choice for choice in YES_NO}
    if answer.lower() not in known:
        raise DataError(f"{row.where}: the answer {answer!r} is not among the choices; expected yes or no")
    return known[answer.lower()]
