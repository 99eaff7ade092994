"""Samples from files: a folder of images, or a JSON lines manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tccd.data.jsonlines import bounded_lines, read_rows
from tccd.data.records import find_columns, is_text, read_fields, shown
from tccd.data.sample import ImageFile, Sample
from tccd.errors import DataError
from tccd.inputs import PAPER_PROMPT

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below it, sorted by path; hidden files and folders left out, and pipes."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, f) for f in files if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")]
    # One that can't be followed is kept, to be named when it is read.
    found = [path for path in found if path.is_file() or not path.exists()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def read_folder(folder: Path, prompt: str | None) -> Iterator[Sample]:
    """One sample for each image of a folder, without an answer.

    Args:
        folder: searched with the folders below it.
        prompt: asked about each image; the published fit's prompt when None.

    Raises:
        DataError: there is no image.
    """
    files = image_files(folder)
    if not files:
        raise DataError(f"no images in folder {folder}; looked for {', '.join(IMAGE_SUFFIXES)} in it and below")
    for path in files:
        name = path.relative_to(folder).as_posix()
        yield Sample(name, name, prompt or PAPER_PROMPT, None, None, None, ImageFile(path))


def read_manifest(file: Path, prompt: str | None, columns: Mapping[str, str | None] | None) -> Iterator[Sample]:
    """The samples of a JSON lines manifest: one object a line, empty lines skipped.

    Keys: `image` (path, relative to the manifest), `prompt`, and optionally `answer`, `choices`, `task`, `id`
    (the line number when missing).

    Args:
        file: the manifest.
        prompt: stands in for each line's own.
        columns: field -> key, where the keys are named otherwise.

    Raises:
        DataError: a line is malformed, its keys are missing or of the wrong type, or its image does not
            exist; names the line.
    """
    required = ("image",) if prompt is not None else ("image", "prompt")
    with file.open("rb") as opened:
        empty = True
        expected = "an object with image and prompt"
        for number, where, row in read_rows(bounded_lines(opened), f"{file}:", expected):
            empty = False
            found = find_columns(row, columns, required, where)
            fields = read_fields(row, found, prompt, where)
            image = row[found["image"]]
            if not is_text(image) or not image:
                raise DataError(f"{where}: {found['image']} is {shown(image)}; expected the path of a file")
            path = file.parent / image
            if not os.path.isfile(path):  # as Path.is_file, which raises on a name that is too long
                raise DataError(f"{where}: no image {str(path)[:200]}; paths are relative to the manifest")
            yield Sample(
                id=fields.id if fields.id is not None else str(number),
                image_id=image,
                prompt=fields.prompt,
                answer=fields.answer,
                choices=fields.choices,
                task=fields.task,
                load=ImageFile(path),
            )
    if empty:
        raise DataError(f"{file} is empty; expected JSON lines with image and prompt")
