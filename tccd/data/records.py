"""A row of a table or manifest -> the fields of a sample, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tccd.errors import DataError

#: Characters of what was given that an error quotes, at most.
QUOTED = 200

#: Column names that are understood without being told, by field, in order of preference.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "picture"),
    "prompt": ("prompt", "question", "query", "text"),
    "answer": ("answer", "multiple_choice_answer", "label"),
    "choices": ("choices", "options"),
    "task": ("task", "question_type", "category"),
    "id": ("id",),
    "facts": ("facts",),
}


def find_columns(
    available: Iterable[str], columns: Mapping[str, str | None] | None, required: Iterable[str], where: str
) -> dict[str, str]:
    """Settle which column holds which field.

    Args:
        available: names of the columns there are.
        columns: field -> column, or None to leave the field out; the fields not given are found by name
            (`COLUMN_NAMES`).
        required: fields that must be found.
        where: the place, for errors.

    Returns:
        Field -> column, for the fields found.

    Raises:
        DataError: an unknown field, a given column that isn't there, or a required field not found.
    """
    names = list(available)
    given = dict(columns or {})
    found: dict[str, str] = {}
    for name in given:
        if name not in COLUMN_NAMES:
            raise DataError(f"unknown field {name!r} in columns; expected one of {', '.join(COLUMN_NAMES)}")
    for name, known in COLUMN_NAMES.items():
        if name in given:
            column = given[name]
            if column is None:
                continue
            if column not in names:
                raise DataError(f"{where}: there is no {column!r} for {name}; found {listed(names)}")
            found[name] = column
        else:
            match = next((k for k in known if k in names), None)
            if match is not None:
                found[name] = match
    for name in required:
        if name not in found:
            raise DataError(
                f"{where}: no {name}; looked for {', '.join(COLUMN_NAMES[name])}; "
                f"found {listed(names) or 'nothing'}; name the one to use with columns={{{name!r}: ...}}"
                + (" or give one prompt for all images" if name == "prompt" else "")
            )
    return found


@dataclass(frozen=True)
class Fields:
    """The checked fields of one row, all but its image; see `Sample`."""

    id: str | None
    prompt: str
    answer: str | None
    choices: tuple[str, ...] | None
    task: str | None
    facts: tuple[tuple[str, ...], ...] | None = None


def read_fields(row: Mapping[str, Any], columns: Mapping[str, str], prompt: str | None, where: str) -> Fields:
    """Check one row.

    Args:
        row: column -> value.
        columns: field -> column, from `find_columns`.
        prompt: stands in for the row's own prompt.
        where: the place, for errors.

    Raises:
        DataError: a value of the wrong type, or an answer that is not among the choices.
    """
    values = {name: row.get(column) for name, column in columns.items()}
    if prompt is None:
        prompt = values.get("prompt")
        if not is_text(prompt) or not prompt.strip():
            raise DataError(f"{where}: {columns['prompt']} is {shown(prompt)}; expected a text that is not empty")
    choices = values.get("choices")
    if choices is not None:
        if not isinstance(choices, list | tuple) or not choices or not all(map(is_text, choices)):
            raise DataError(f"{where}: {columns['choices']} is {shown(choices)}; expected a list of texts")
        if len(set(choices)) != len(choices):
            raise DataError(f"{where}: {columns['choices']} repeats a choice: {shown(choices)}")
        choices = tuple(choices)
    task, key = values.get("task"), values.get("id")
    for name, value in (("task", task), ("id", key)):
        if value is not None and not is_text(value) and type(value) is not int:
            raise DataError(f"{where}: {columns[name]} is {shown(value)}; expected a text or an integer")
    answer = _answer(values.get("answer"), choices, columns.get("answer", "answer"), where)
    return Fields(
        id=None if key is None else str(key),
        prompt=prompt,
        answer=answer,
        choices=choices,
        task=None if task is None else str(task),
        facts=_facts(values.get("facts"), columns.get("facts", "facts"), where),
    )


def _answer(answer: Any, choices: tuple[str, ...] | None, column: str, where: str) -> str | None:
    if answer is None:
        return None
    if isinstance(answer, int) and not isinstance(answer, bool) and choices is not None:
        if not 0 <= answer < len(choices):
            raise DataError(f"{where}: {column} is choice number {answer}; expected 0 to {len(choices) - 1}")
        return choices[answer]
    if not is_text(answer):
        raise DataError(
            f"{where}: {column} is {shown(answer)}; expected a text, or the number of a choice, from 0"
        )
    if choices is not None and answer not in choices:
        raise DataError(
            f"{where}: the {column} {cut(repr(answer))} is not among the choices {cut(str(list(choices)))}; "
            "expected the same text in both"
        )
    return answer


def _facts(facts: Any, column: str, where: str) -> tuple[tuple[str, ...], ...] | None:
    if facts is None:
        return None
    listed = [[fact] if isinstance(fact, str) else fact for fact in facts] if isinstance(facts, list) else None
    if listed is None or not all(
        isinstance(fact, list | tuple) and 1 <= len(fact) <= 3 and all(map(is_text, fact)) for fact in listed
    ):
        raise DataError(
            f"{where}: {column} is {shown(facts)}; expected a list of facts, each a text or a list of one to "
            'three texts, as in ["circle", ["circle", "red"]]'
        )
    return tuple(tuple(fact) for fact in listed)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string that UTF-8, and so a tokenizer and a report, can hold: JSON can name half a
    surrogate pair.
    """
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def cut(text: str) -> str:
    """The beginning of a text, as an error may quote it."""
    return text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Names, with commas between, as an error may quote them."""
    return cut(", ".join(map(str, names)))


def shown(value: Any) -> str:
    """A value of a row in an error: its type and its beginning."""
    if value is None:
        return "missing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
