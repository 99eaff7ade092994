"""Options that several commands take, and the texts they are read from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.modality import Modality


class DType(StrEnum):
    """Precision of a model's weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


_MODEL = "Model"
_DATA = "Data"

Model = Annotated[
    str,
    typer.Option("--model", metavar="ID_OR_PATH", help="Local folder or hub id.", rich_help_panel=_MODEL),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of the model on the hub.", rich_help_panel=_MODEL),
]
FittedOn = Annotated[
    str | None,
    typer.Option(
        "--fitted-on",
        metavar="BASE",
        help="Model id that the bank names, if --model is a quantised or otherwise rewritten copy of that model; "
        "results then say so.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL),
]
Precision = Annotated[
    DType,
    typer.Option(
        "--dtype",
        help="auto: the checkpoint's own; on a CPU float32 for a float16 one.",
        rich_help_panel=_MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the model's repository brings.",
        rich_help_panel=_MODEL,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts a forward.", rich_help_panel=_MODEL)]

_SOURCES = (
    "easy-vqa, digits, a benchmark (blink, mmvp, cv-bench, pope, scienceqa-img, medblink), a folder of "
    "images, of parquet files or as datasets.save_to_disk writes it, a .jsonl manifest (image, prompt, "
    "answer, choices), or a data-set id on the hub as owner/name or owner/name:configuration (streamed)"
)
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help=f"{_SOURCES}.",
        rich_help_panel=_DATA,
    ),
]
Sources = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="SOURCE",
        help=f"{_SOURCES}. Repeat it for several.",
        rich_help_panel=_DATA,
    ),
]
Splits = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        help="Split of the data: one for all, or one for each --data in order. If not given: train, where the "
        "data have it; a benchmark: its published one.",
        rich_help_panel=_DATA,
    ),
]
DataRevisions = Annotated[
    list[str] | None,
    typer.Option(
        "--data-revision",
        help="Branch, tag or commit of the data on the hub: one for all, or one for each --data in order.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Split of the data. If not given: train to fit and test to probe, where the data have both; "
        "a benchmark: its published one.",
        rich_help_panel=_DATA,
    ),
]
DataRevision = Annotated[
    str | None,
    typer.Option(
        "--data-revision",
        help="Branch, tag or commit of the data on the hub; a benchmark: its published one.",
        rich_help_panel=_DATA,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="Column or key of image, prompt, answer, choices, task, id or facts, where it is named otherwise; "
        "FIELD= leaves the field out. Repeatable.",
        rich_help_panel=_DATA,
    ),
]


def parse_columns(texts: Sequence[str] | None) -> dict[str, str | None] | None:
    """`["prompt=frage", "answer="]` -> `{"prompt": "frage", "answer": None}`.

    Raises:
        ConfigError: a text without `=`.
    """
    if not texts:
        return None
    columns: dict[str, str | None] = {}
    for text in texts:
        field, found, name = text.partition("=")
        if not found or not field:
            raise ConfigError(f"--column {text!r}; expected FIELD=NAME, as in --column prompt=question")
        columns[field.strip()] = name.strip() or None
    return columns


def each(values: Sequence[str] | None, sources: Sequence[str], option: str) -> list[str | None]:
    """One value for each source: the only one for all, or one each; None where none was given.

    Args:
        values: of an option that may stand several times.
        sources: values of `--data`.
        option: its name, for the error.

    Raises:
        ConfigError: another number of values.
    """
    given = list(values or [])
    if len(given) < 2:
        return [given[0] if given else None] * len(sources)
    if len(given) != len(sources):
        raise ConfigError(
            f"{option} stands {len(given)} times for {len(sources)} --data; expected it once, or once for each"
        )
    return [*given]


#: What `--layers` asks for, by modality: layer indices, or None for all layers of the model.
LayerChoice: TypeAlias = "dict[Modality, tuple[int, ...] | None]"

_EXAMPLE = "as in text=12,vision=16 or text=8-12,16,vision=all or 4,8,12 (of both) or all"


def parse_layers(text: str) -> LayerChoice:
    """`text=12,vision=16` -> `{"text": (12,), "vision": (16,)}`.

    A modality takes indices from 0, ranges (`8-12`, both ends included) and `all`; a bare `all` means every
    layer of both, and bare indices and ranges mean those of both.

    Raises:
        ConfigError: anything else.
    """
    if text.strip() == "all":
        return {"text": None, "vision": None}
    if text.strip() and not set(text) - set("0123456789-, "):
        both = parse_layers(f"text={text}")["text"]
        return {"text": both, "vision": both}
    chosen: dict[str, set[int] | None] = {}
    modality = ""
    for part in text.split(","):
        name, found, value = part.rpartition("=")
        if found:
            modality = name.strip()
            if modality not in ("text", "vision"):
                raise ConfigError(
                    f"--layers {text!r}: unknown modality {modality!r}; expected text or vision, {_EXAMPLE}"
                )
            if modality in chosen:
                raise ConfigError(f"--layers {text!r}: {modality} stands twice; expected it once, {_EXAMPLE}")
            chosen[modality] = set()
        value = value.strip()
        layers = chosen.get(modality)
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", value)
        if value == "all" and layers == set():
            chosen[modality] = None
        elif match is None or layers is None:
            raise ConfigError(f"--layers {text!r}: can't read {part.strip()!r}; expected layers, {_EXAMPLE}")
        else:
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ConfigError(f"--layers {text!r}: the range {value} is empty; expected {last}-{first}")
            layers.update(range(first, last + 1))
    settled = {m: None if found is None else tuple(sorted(found)) for m, found in chosen.items()}
    return cast("LayerChoice", settled)


def settle_layers(choice: LayerChoice, num_layers: int) -> dict[Modality, tuple[int, ...]]:
    """Put a model's layers where all were asked for."""
    return {m: tuple(range(num_layers)) if layers is None else layers for m, layers in choice.items()}


def single_layers(choice: LayerChoice) -> dict[Modality, int]:
    """Each modality's one layer.

    Raises:
        ConfigError: several layers of a modality, or all.
    """
    for modality, layers in choice.items():
        if layers is None or len(layers) != 1:
            raise ConfigError(f"--layers: expected one layer for {modality}, as in text=12,vision=16")
    return {modality: layers[0] for modality, layers in choice.items() if layers}


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """`0,0.2,0.4` -> `(0.0, 0.2, 0.4)`; an empty text gives none.

    Args:
        text: what was given.
        option: its name, for the error.

    Raises:
        ConfigError: a part that is no number.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    try:
        return tuple(float(part) for part in parts)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}; expected numbers with commas between, as in 0,0.4") from error


def parse_segments(text: str | None) -> dict[str, tuple[str, ...]]:
    """`text=all,question,vision=span` -> `{"text": ("all", "question"), "vision": ("span",)}`.

    Raises:
        ConfigError: a segment before the first modality, or a modality that stands twice.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    modality = ""
    for part in (text or "").split(",") if text is not None else ():
        name, found, value = part.rpartition("=")
        if found:
            modality = name.strip()
            if modality in chosen:
                raise ConfigError(f"--segments {text!r}: {modality} stands twice; expected it once")
        if not modality:
            raise ConfigError(f"--segments {text!r}; expected segments by modality, as in text=all,question")
        chosen[modality] = (*chosen.get(modality, ()), value.strip())
    return chosen
