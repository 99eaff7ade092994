"""Samples from files: a folder of images, or a JSON lines manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from PIL import Image

from tccd.data.jsonlines import bounded_lines, read_rows
from tccd.data.records import cut, find_columns, is_text, read_fields, shown
from tccd.data.sample import ImageFile, Sample
from tccd.errors import DataError
from tccd.inputs import PAPER_PROMPT

#: Ends of names of pictures.
IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi"),
    *(".svg", ".tga", ".tif", ".tiff", ".webp"),
)
#: Ends of names of raw photos: Pillow opens some of them, and shows the small copy inside.
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below it, sorted by path; hidden files and folders left out, and pipes.

    Links to folders are followed, each folder once.

    Raises:
        DataError: a folder can't be read, a link leads nowhere, or Pillow can't open a picture's format; names it.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    roots = [folder]
    for root in roots:  # grows by the links that are found
        for at, folders, files in os.walk(root, onerror=_unreadable):
            here = os.stat(at)
            if (here.st_dev, here.st_ino) in seen:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [Path(at, name) for name in folders if os.path.islink(Path(at, name))]
            found += _pictures(Path(at), files)
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _unreadable(error: OSError) -> None:
    where = cut(str(error.filename))
    raise DataError(f"can't read folder {where}: {error.strerror}; expected one that you may read") from error


def _pictures(folder: Path, files: list[str]) -> Iterator[Path]:
    """The pictures among the files of a folder."""
    for path in (folder / name for name in files if not name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix not in (*IMAGE_SUFFIXES, *_RAW):
            if not suffix and path.is_symlink() and not path.exists():
                raise DataError(f"{cut(str(path))} is a link that leads nowhere; mend it, or take it out")
        elif suffix not in _openable():
            raise DataError(
                f"can't read image {cut(str(path))}: Pillow opens no {suffix} file here; expected formats such as "
                "JPEG or PNG. Convert it, or take it out of the folder"
            )
        # A link that can't be followed is kept, to be named when it is read.
        elif path.is_file() or not path.exists():
            yield path


@cache
def _openable() -> frozenset[str]:
    """Ends of names of the pictures that Pillow can open here, which depends on how it was built."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN) - {*_RAW}


def read_folder(folder: Path, prompt: str | None) -> Iterator[Sample]:
    """One sample for each image of a folder, without an answer.

    Args:
        folder: searched with the folders below it.
        prompt: asked about each image; the published fit's prompt when None.

    Raises:
        DataError: there is no image, or `image_files` refuses the folder.
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
                facts=fields.facts,
            )
    if empty:
        raise DataError(f"{file} is empty; expected JSON lines with image and prompt")
