"""The reference `prompt`: a description of other words, as a request gives it, and the tokens that it stands for.

A request's extra arguments are flat, so the description is JSON in a string, of one of these forms:

- `{"text": "..."}`, tokenized as it is;
- `{"messages": [{"role": "system", "content": "..."}, ...]}`, through the model's own chat template;
- `{"tokens": [...]}`.

Where the images shall be seen there, too, the words have the model's own mark for an image, once for each of the
request's. Without a mark the reference sees no image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tccd.errors import ConfigError

FORMS = {"text": str, "messages": list, "tokens": list}


def parse(description: str) -> tuple[str, Any]:
    """Form and value of a description.

    Raises:
        ConfigError: it is no JSON of a known form.
    """
    try:
        found = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"tccd_prompt is no JSON ({str(error)[:100]})") from error
    if not isinstance(found, dict) or len(found) != 1 or next(iter(found)) not in FORMS:
        raise ConfigError("tccd_prompt has to be a JSON object with one of " + ", ".join(map(repr, FORMS)))
    ((form, value),) = found.items()
    if not isinstance(value, FORMS[form]) or not value:
        raise ConfigError(f"tccd_prompt: {form!r} has to be a {FORMS[form].__name__} that is not empty")
    if form == "messages" and not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        raise ConfigError("tccd_prompt: each of 'messages' is an object with 'role' and 'content'")
    if form == "tokens" and not all(type(token) is int and token >= 0 for token in value):
        raise ConfigError("tccd_prompt: 'tokens' are integers from 0")
    return form, value


def tokens(description: str, tokenizer: Any, vocabulary: int) -> list[int]:
    """The tokens that a description stands for, one for each image.

    Args:
        description: as `parse` takes it.
        tokenizer: the served model's, of transformers.
        vocabulary: number of the model's tokens.

    Raises:
        ConfigError: they can't be made.
    """
    form, value = parse(description)
    if form != "tokens" and tokenizer is None:
        raise ConfigError("this server has no tokenizer: give tccd_prompt as 'tokens'")
    if form == "text":
        value = list(tokenizer(value).input_ids)
    elif form == "messages":
        try:
            text = tokenizer.apply_chat_template(value, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything
            raise ConfigError(f"tccd_prompt: the chat template failed: {str(error)[:200]}") from error
        value = list(tokenizer(text, add_special_tokens=False).input_ids)
    if max(value) >= vocabulary:
        raise ConfigError(f"tccd_prompt has token {max(value)}; the model has {vocabulary}")
    return [int(token) for token in value]


def with_images(
    ids: Sequence[int], vision_ids: Sequence[int], spans: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Put the tokens of a request's images in the place of their marks.

    Args:
        ids: tokens with one mark an image, or none.
        vision_ids: tokens that are such marks.
        spans: tokens of each image, in order.

    Returns:
        All tokens, and where each image begins; no places where there is no mark.

    Raises:
        ConfigError: another number of marks than of images.
    """
    marks = [i for i, token in enumerate(ids) if token in set(vision_ids)]
    if marks and len(marks) != len(spans):
        raise ConfigError(
            f"tccd_prompt marks {len(marks)} images, and the request has {len(spans)}: mark each or none"
        )
    found: list[int] = []
    places: list[int] = []
    for i, token in enumerate(ids):
        if i in marks:
            places.append(len(found))
            found += spans[len(places) - 1]
        else:
            found.append(token)
    return found, places
