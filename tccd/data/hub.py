"""Samples from a data set of the `datasets` library: streamed from the hub, or from a local folder."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tccd.data.pictures import image_size, open_image, to_rgb
from tccd.data.records import QUOTED, find_columns, read_fields
from tccd.data.sample import Sample
from tccd.errors import DataError, require

#: Rows that a seeded draw shuffles among; shards are shuffled besides.
SHUFFLE_BUFFER = 2000


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set, ready to stream.

    Attributes:
        name: the data set's id or folder, for errors.
        split: the split's name; None where the data set has no splits.
        revision: commit of the hub repository; None for a local folder.
        rows: the `datasets.IterableDataset`.
    """

    name: str
    split: str | None
    revision: str | None
    rows: Any

    @property
    def where(self) -> str:
        """The place, for errors."""
        return self.name if self.split is None else f"{self.name} split {self.split}"


def open_split(source: str, split: str | None, revision: str | None, preferred: str | None = None) -> HubSplit:
    """Find a split of a data set, reading no rows.

    Args:
        source: `owner/name` or `owner/name:configuration` on the hub, or a local folder.
        split: its split; may be None where there is only one.
        revision: branch, tag or commit on the hub.
        preferred: taken where there are several and `split` is None, if it is one of them.

    Raises:
        DataError: no such data set, configuration or split, or a split has to be chosen.
        MissingExtraError: datasets is not installed.
    """
    datasets = require("datasets", "data")
    local = Path(source).is_dir()
    name, _, configuration = (source, "", "") if local else source.partition(":")
    commit = None
    try:
        if local and is_saved(Path(source)):
            splits = _saved(source)
        else:
            builder = datasets.load_dataset_builder(name, configuration or None, revision=revision)
            commit = None if local else builder.hash
            splits = builder.as_streaming_dataset()
    # An open set: datasets, huggingface_hub, the HTTP client and the file formats each have their own errors.
    except Exception as error:
        if local:
            raise DataError(f"can't open {source!r} as a folder of data files: {reason(error)}") from error
        raise DataError(
            f"can't open {source!r}. As a path: there is no such file or folder. As a data-set id on the Hugging "
            f"Face hub: {reason(error)}. Check the spelling; a data set is owner/name or owner/name:configuration"
        ) from error
    names = list(splits)
    listed = ", ".join(map(str, names))
    if split is None and preferred in names:
        split = preferred
    if split is None and len(names) != 1:
        raise DataError(f"{source} has the splits {listed}; choose one")
    if split is not None and split not in names:
        found = f"found {listed}" if names != [None] else "it has no splits: leave it out"
        raise DataError(f"{source} has no split {split!r}; {found}")
    chosen = split or names[0]
    return HubSplit(source, chosen, commit, splits[chosen])


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a data set, or of a dictionary of them, wrote a folder."""
    one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (folder / "dataset_dict.json").is_file()


def _saved(folder: str) -> dict[str | None, Any]:
    """Split -> rows of a folder that `save_to_disk` wrote."""
    datasets = require("datasets", "data")
    found = datasets.load_from_disk(folder)
    tables = found if isinstance(found, dict) else {found.split and str(found.split): found}
    return {split: table.to_iterable_dataset() for split, table in tables.items()}


def read_split(
    hub: HubSplit, prompt: str | None, columns: Mapping[str, str | None] | None, seed: int | None
) -> Iterator[Sample]:
    """Stream the samples of a split.

    Images are kept, as they came, in a temporary folder that lives as long as a sample of the split. A
    sample's id is made from the hashes of its image and prompt: the same in whatever order rows are drawn.

    Args:
        hub: from `open_split`.
        prompt: stands in for each row's own.
        columns: field -> column, as `find_columns` takes it; `id` is used only if given.
        seed: shuffles the shards, and the rows within a buffer of `SHUFFLE_BUFFER`; None keeps the order.

    Raises:
        DataError: a column is missing, a value has the wrong type, or the stream breaks; names the row.
    """
    datasets = require("datasets", "data")
    rows = hub.rows if seed is None else hub.rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    features = dict(rows.features or {})
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            # Left encoded: decoding is put off to `Sample.image`, and what is kept stays small.
            rows = rows.cast_column(column, datasets.Image(decode=False))
    spool = tempfile.TemporaryDirectory(prefix="tccd-images-")
    found: dict[str, str] | None = None
    seen: dict[str, int] = {}
    required = ("image",) if prompt is not None else ("image", "prompt")
    for number, row in enumerate(_rows(rows, hub)):
        where = f"{hub.where}, row {number}" + (" as shuffled" if seed is not None else "")
        if found is None:
            found = find_columns(row, columns, required, hub.where)
            if "id" not in (columns or {}):
                found.pop("id", None)
        row = _named_label(row, features, found)
        fields = read_fields(row, found, prompt, where)
        image_id = _keep(row[found["image"]], Path(spool.name), f"{where}: column {found['image']}")
        key = fields.id
        if key is None:
            key = f"{image_id}-{hashlib.sha256(fields.prompt.encode()).hexdigest()[:8]}"
            seen[key] = seen.get(key, 0) + 1
            key += f"-{seen[key]}" if seen[key] > 1 else ""
        yield Sample(
            id=key,
            image_id=image_id,
            prompt=fields.prompt,
            answer=fields.answer,
            choices=fields.choices,
            task=fields.task,
            load=_Spooled(spool, image_id, where),
            facts=fields.facts,
        )


def _rows(rows: Any, hub: HubSplit) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:  # see open_split
        raise DataError(f"reading {hub.where} failed: {reason(error)}") from error


def _named_label(row: dict[str, Any], features: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    # A ClassLabel column holds a number, whose name is the answer.
    column = columns.get("answer", "")
    names = getattr(features.get(column), "names", None)
    value = row.get(column)
    if names is None or not isinstance(value, int) or "choices" in columns:
        return row
    return {**row, column: names[value] if value >= 0 else None}


def encoded_image(value: Any, where: str) -> bytes:
    """The image file behind a cell of an image column, as it came; as PNG where it is decoded already.

    Args:
        value: the cell: `{"bytes": ..., "path": ...}`, or a PIL image.
        where: the place, for errors.

    Raises:
        DataError: the cell holds something else, or a picture that `to_rgb` refuses, or the file that it names
            can't be read.
    """
    if isinstance(value, Image.Image):  # a column whose type datasets did not know beforehand
        file = io.BytesIO()
        to_rgb(value, where).save(file, format="PNG")
        return file.getvalue()
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        # A local path, or an address whose protocol huggingface_hub and datasets made known to fsspec.
        try:
            with require("fsspec", "data").open(value["path"], "rb") as file:
                return file.read()
        except Exception as error:  # see open_split; and an address of no known protocol
            raise DataError(f"{where}: can't read image {value['path']}: {reason(error)}") from error
    raise DataError(f"{where} holds {type(value).__name__}; expected one image")


def _keep(value: Any, folder: Path, where: str) -> str:
    """Write an image as it came into the folder, once; return the hash that is its file name."""
    data = encoded_image(value, where)
    name = hashlib.sha256(data).hexdigest()[:16]
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


@dataclass(frozen=True)
class _Spooled:
    """Reads a kept image; holds on to the temporary folder that it lies in."""

    folder: Any
    name: str
    where: str

    def __call__(self) -> Image.Image:
        return open_image(Path(self.folder.name, self.name), f"of {self.where}")

    def size(self) -> tuple[int, int]:
        """Width and height, from the file's header."""
        return image_size(Path(self.folder.name, self.name), f"of {self.where}")


def reason(error: Exception) -> str:
    """An error of another library in one line, for an error of ours."""
    text = str(error).strip().split("\n")[0][:QUOTED]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
