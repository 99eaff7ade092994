"""What commands that answer prompts twice share: batches, greedy answers, and the two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from tccd.cli.console import print_json, progress
from tccd.cli.questions import Question, open_images

if TYPE_CHECKING:
    from rich.table import Table

    from tccd.loading import Loaded


class Answered(Protocol):
    """The answers to one question."""

    @property
    def question(self) -> Question:
        """What was asked."""
        ...

    @property
    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        ...


A = TypeVar("A", bound=Answered)


class Encoded(NamedTuple):
    """Some questions as the model takes them."""

    questions: Sequence[Question]
    images: list[list[Any]]
    prompts: list[str]
    inputs: Any


def encoded(
    loaded: Loaded, questions: Sequence[Question], batch_size: int, max_new_tokens: int
) -> Iterator[Encoded]:
    """The questions in batches, where the model is and in its precision.

    Args:
        loaded: model and processor.
        questions: what is asked.
        batch_size: questions a forward.
        max_new_tokens: of each answer.

    Raises:
        DataError: an image can't be read, or a prompt with its images is longer than the model's context; names
            the prompt.
        ConfigError: it leaves too little room for its answer.
    """
    from tccd.inputs import check_context, encode

    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        images, prompts = [open_images(question) for question in batch], [question.prompt for question in batch]
        inputs = encode(loaded.processor, images, prompts)
        check_context(loaded.model.config, inputs, [question.name for question in batch], max_new_tokens)
        # BatchFeature.to changes the precision of floating tensors alone.
        yield Encoded(batch, images, prompts, inputs.to(loaded.model.device, loaded.model.dtype))


def decode(loaded: Loaded, inputs: Any, max_new_tokens: int, **door: Any) -> list[str]:
    """Greedy answers to an encoded batch.

    Args:
        loaded: model and processor.
        inputs: what `encode` returned.
        max_new_tokens: of each answer.
        door: `custom_generate`, where there is one, and other arguments of `generate`.
    """
    tokens = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **door)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]


def tell(answers: Iterator[A], total: int, as_json: bool, show: Callable[[Sequence[A]], None]) -> None:
    """Print answers: as JSON each as it comes, else all at the end, those before a failure too.

    Args:
        answers: as they come.
        total: how many will.
        as_json: print JSON lines.
        show: prints them otherwise.
    """
    found: list[A] = []
    try:
        with progress() as report:
            for answer in answers:
                found.append(answer)
                report("answer", len(found), total)
                if as_json:
                    print_json(answer.row)
    finally:
        if found and not as_json:
            show(found)


def side_by_side(title: str, rows: Sequence[tuple[Question, str, str]]) -> Table:
    """A table of plain answers beside others; those that differ stand out.

    Args:
        title: of the others' column.
        rows: a question, its plain answer and the other one.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table("Image", "Prompt", "Plain", title, show_lines=len(rows) > 1)
    for question, plain, other in rows:
        names = ", ".join(path.name for path in question.images)
        table.add_row(
            *map(Text, (names, question.prompt, plain)), Text(other, style="" if plain == other else "bold")
        )
    return table
