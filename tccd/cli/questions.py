"""The prompts of `tccd generate`: options, or lines of JSON on stdin; checked before the first is answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tccd.data.jsonlines import bounded_lines, read_rows
from tccd.data.records import cut, is_text, shown
from tccd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tccd.loading import Loaded


@dataclass(frozen=True)
class Question:
    """A prompt about one or more images, what errors call it, and what its JSON line held besides."""

    name: str
    prompt: str
    images: tuple[Path, ...]
    row: dict[str, Any]


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


def check_questions(
    loaded: Loaded, questions: Sequence[Question], max_new_tokens: int, text_only: bool = False
) -> None:
    """Refuse what can't be asked, before the first is: reads the text of prompts and the headers of images.

    Args:
        loaded: model and processor.
        questions: what is to be asked.
        max_new_tokens: of each answer.
        text_only: they are asked without their images.

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
    if text_only:
        return
    sizes: dict[Path, tuple[int, int]] = {}
    for question in questions:
        try:
            sizes |= {image: image_size(image) for image in question.images if image not in sizes}
        except DataError as error:
            raise DataError(f"{question.name}: {error}") from error
    shown = [Shown(q.name, q.prompt, tuple(sizes[image] for image in q.images)) for q in questions]
    check_shown(loaded.model.config, loaded.processor, shown, max_new_tokens)


def open_images(question: Question) -> list[Any]:
    """The question's pictures.

    Raises:
        DataError: one can't be read; names the question.
    """
    from tccd.data.pictures import open_image

    try:
        return [open_image(path) for path in question.images]
    except DataError as error:
        raise DataError(f"{question.name}: {error}") from error
