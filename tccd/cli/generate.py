"""`tccd generate`: the same prompts answered plainly and with TCCD."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.console import AsJson, output, print_json, progress
from tccd.cli.options import BatchSize, Device, DType, FittedOn, Model, Precision, Revision, TrustRemoteCode
from tccd.data.jsonlines import bounded_lines, read_rows
from tccd.data.records import cut, is_text, shown
from tccd.decoding.gates import GATES
from tccd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tccd.decoding.huggingface import TCCD
    from tccd.loading import Loaded


#: Signals that say where contrast acts; see `Rule.gate`.
Gate = StrEnum("Gate", {name: name for name in GATES})  # type: ignore[misc]


class Tokens(StrEnum):
    """Tokens that are contrasted; see `TCCDConfig.tokens`."""

    all = "all"
    first = "first"


@dataclass(frozen=True)
class Question:
    """A prompt about one or more images, what errors call it, and what its JSON line held besides."""

    name: str
    prompt: str
    images: tuple[Path, ...]
    row: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The answers to one question."""

    question: Question
    plain: str
    tccd: str

    @property
    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**self.question.row, "plain": self.plain, "tccd": self.tccd}


_TCCD = "TCCD"


def generate(
    model: Model,
    bank: Annotated[Path, typer.Option("--bank", metavar="FILE", help="Centroids fitted for the model.")],
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="Question about the image; repeatable. - reads JSON lines with prompt and image from stdin.",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Image that the prompts are about; repeat it for several in one prompt.",
        ),
    ] = None,
    alpha_cd: Annotated[
        float, typer.Option(help="Strength of the contrast; 0 is plain decoding.", rich_help_panel=_TCCD)
    ] = 1.0,
    alpha_interp: Annotated[
        float,
        typer.Option(help="What the erased stream keeps of its text: 0 nothing, 1 all.", rich_help_panel=_TCCD),
    ] = 0.4,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer that is erased; needed if the bank has several.", rich_help_panel=_TCCD),
    ] = None,
    beta: Annotated[
        float,
        typer.Option(
            help="Plausibility: share of the top token's probability that a token needs; 0 is off.",
            rich_help_panel=_TCCD,
        ),
    ] = 0.0,
    gate: Annotated[
        Gate | None,
        typer.Option(help="Contrast only where this says that the model is unsure.", rich_help_panel=_TCCD),
    ] = None,
    gate_threshold: Annotated[
        float, typer.Option(help="Where the gate is half open.", rich_help_panel=_TCCD)
    ] = 0.5,
    gate_ramp: Annotated[
        float, typer.Option(help="Width of the gate's ramp; 0 is a switch.", rich_help_panel=_TCCD)
    ] = 0.0,
    tokens: Annotated[
        Tokens, typer.Option(help="Contrast all tokens or the first only.", rich_help_panel=_TCCD)
    ] = Tokens.all,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    fitted_on: FittedOn = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Answer prompts plainly and with TCCD, side by side.

    \b
    Decoding is greedy. With --json, one object a line: prompt, image, plain,
    tccd, and whatever else the prompt's own JSON line held. All lines are
    checked before the first is answered; answers that are there when a later
    picture turns out to be damaged are printed.

    \b
    Examples:
      tccd generate --model llava-hf/llava-1.5-7b-hf --bank bank.safetensors \\
        --image cat.jpg --prompt "Is there a dog?" --prompt "What color is it?"
      tccd generate --model ./model --bank bank.safetensors --gate margin \\
        --prompt - --json < questions.jsonl > answers.jsonl
    """
    from tccd.decoding.config import TCCDConfig

    config = TCCDConfig(
        alpha_cd=alpha_cd,
        alpha_interp=alpha_interp,
        layer=layer,
        beta=beta,
        gate=gate.value if gate else None,
        gate_threshold=gate_threshold,
        gate_ramp=gate_ramp,
        tokens=tokens.value,
    )
    questions = read_questions(prompt, image or [])

    from tccd.centroids.bank import CentroidBank
    from tccd.decoding.huggingface import TCCD
    from tccd.loading import load_model

    fitted = CentroidBank.load(bank)
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    decoder = TCCD(loaded.model, fitted, config=config, fitted_on=fitted_on)
    if decoder.fitted_on:
        typer.echo(f"tccd: the bank was fitted on {fitted_on}, of which {model} is taken to be a copy", err=True)
    check_questions(loaded, questions, max_new_tokens)
    answers: list[Answer] = []
    try:
        with progress() as report:
            for answer in answer_all(loaded, decoder, questions, batch_size, max_new_tokens):
                answers.append(answer)
                report("answer", len(answers), len(questions))
                if as_json:
                    print_json(answer.row)
    finally:
        if answers and not as_json:
            show(answers)


def read_questions(
    prompts: Sequence[str], images: Sequence[Path], lines: Iterable[bytes] | None = None
) -> list[Question]:
    """Put the prompts together with their images.

    Args:
        prompts: texts, or `["-"]` for JSON lines.
        images: asked about by every prompt that names no image of its own.
        lines: stands in for stdin.

    Raises:
        ConfigError: `-` beside other prompts, or no image for a prompt.
        DataError: a malformed line, which is named; an image that doesn't exist; no prompt at all.
    """
    if "-" in prompts:
        if len(prompts) > 1:
            raise ConfigError("--prompt - reads all prompts from stdin; expected no other --prompt beside it")
        questions = list(_read_lines(bounded_lines(sys.stdin.buffer) if lines is None else lines, images))
        if not questions:
            raise DataError("stdin holds no prompts; expected JSON lines with prompt and image")
    else:
        if not images:
            raise ConfigError("no image; expected --image FILE, which the prompts are about")
        given = [str(image) for image in images]
        named = given[0] if len(given) == 1 else given
        if any(not prompt.strip() for prompt in prompts):
            raise ConfigError("--prompt is empty; expected a question about the image")
        if not all(map(is_text, prompts)):
            raise ConfigError("--prompt is not text in UTF-8; expected a question about the image")
        questions = [
            Question(f"--prompt {number}", p, tuple(images), {"prompt": p, "image": named})
            for number, p in enumerate(prompts, 1)
        ]
    for question in questions:
        for image in question.images:
            if not os.path.isfile(image):  # as Path.is_file, which raises on a name that is too long
                raise DataError(
                    f"{question.name}: no image {cut(str(image))}; expected a file, relative to the current folder"
                )
    return questions


def _read_lines(lines: Iterable[bytes], images: Sequence[Path]) -> Iterator[Question]:
    for _, where, row in read_rows(lines, "stdin line ", "an object with prompt and image"):
        prompt = row.get("prompt")
        if not is_text(prompt) or not prompt.strip():
            raise DataError(f"{where}: prompt is {shown(prompt)}; expected a text that is not empty")
        own = row.get("image")
        paths = [own] if isinstance(own, str) else own
        if paths is None:
            paths = [str(image) for image in images]
            row["image"] = paths[0] if len(paths) == 1 else paths
        if not isinstance(paths, list) or not paths or not all(map(is_text, paths)):
            raise DataError(
                f"{where}: image is {shown(own)}; expected the path of a file, or --image for all lines"
            )
        yield Question(where, prompt, tuple(map(Path, paths)), row)


def check_questions(loaded: Loaded, questions: Sequence[Question], max_new_tokens: int) -> None:
    """Refuse what can't be asked, before the first is: reads the text of prompts and the headers of images.

    Raises:
        DataError: a prompt holds a token that stands for a picture, or is longer than the model's context; or an
            image is none, an animation, or too large. Names the prompt.
        ConfigError: a prompt leaves too little room for its answer.
    """
    from tccd.data.pictures import image_size
    from tccd.inputs import Shown, check_asked, check_shown

    asked: dict[str, str] = {}
    for question in questions:
        asked.setdefault(question.prompt, question.name)
    check_asked(loaded.model.config, loaded.processor, asked, max_new_tokens)
    sizes: dict[Path, tuple[int, int]] = {}
    for question in questions:
        try:
            sizes |= {image: image_size(image) for image in question.images if image not in sizes}
        except DataError as error:
            raise DataError(f"{question.name}: {error}") from error
    shown = [Shown(q.name, q.prompt, tuple(sizes[image] for image in q.images)) for q in questions]
    check_shown(loaded.model.config, loaded.processor, shown, max_new_tokens)


def answer_all(
    loaded: Loaded, tccd: TCCD, questions: Sequence[Question], batch_size: int, max_new_tokens: int
) -> Iterator[Answer]:
    """Answer every question twice, plainly and with TCCD, in batches.

    Raises:
        DataError: an image can't be read, or a prompt with its images is longer than the model's context; names
            the prompt.
        ConfigError: it leaves too little room for its answer.
    """
    from tccd.inputs import check_context, encode

    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        images = [_open_images(question) for question in batch]
        inputs = encode(loaded.processor, images, [question.prompt for question in batch])
        names = [question.name for question in batch]
        check_context(loaded.model.config, inputs, names, max_new_tokens)
        # BatchFeature.to changes the precision of floating tensors alone.
        inputs = inputs.to(loaded.model.device, loaded.model.dtype)
        plain, contrasted = (
            _decode(loaded, inputs, max_new_tokens, **door) for door in ({}, {"custom_generate": tccd})
        )
        for question, one, other in zip(batch, plain, contrasted, strict=True):
            yield Answer(question, one, other)


def _open_images(question: Question) -> list[Any]:
    from tccd.data.pictures import open_image

    try:
        return [open_image(path) for path in question.images]
    except DataError as error:
        raise DataError(f"{question.name}: {error}") from error


def _decode(loaded: Loaded, inputs: Any, max_new_tokens: int, **door: Any) -> list[str]:
    tokens = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **door)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]


def show(answers: Sequence[Answer]) -> None:
    """Print the answers side by side; those that differ stand out."""
    from rich.table import Table
    from rich.text import Text

    table = Table("Image", "Prompt", "Plain", "TCCD", show_lines=len(answers) > 1)
    for answer in answers:
        style = "bold" if answer.plain != answer.tccd else ""
        names = ", ".join(path.name for path in answer.question.images)
        cells = (names, answer.question.prompt, answer.plain)
        table.add_row(*map(Text, cells), Text(answer.tccd, style=style))
    output().print(table)
