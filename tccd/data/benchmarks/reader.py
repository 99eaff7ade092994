"""From a benchmark's questions to samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from tccd.data.benchmarks.table import Benchmark
from tccd.data.benchmarks.tables import Picture, Tables
from tccd.data.pictures import image_size, open_image, to_rgb
from tccd.data.sample import Sample

#: Between pictures that are shown side by side: width in pixels, and grey level.
BORDER, GREY = 3, 200


def read_benchmark(
    benchmark: Benchmark, split: str | None, revision: str | None, prompt: str | None
) -> tuple[list[Sample], str, str | None]:
    """The samples of a benchmark, in its own order.

    A question about several pictures shows them side by side as one, as published.

    Args:
        benchmark: from `BENCHMARKS`.
        split: another split than the benchmark's own.
        revision: branch, tag or commit to read instead of the benchmark's own commit.
        prompt: stands in for each question.

    Returns:
        The samples, the split, and the commit that was read.

    Raises:
        DataError: the benchmark can't be loaded, or a row is malformed; names the row.
        MissingExtraError: datasets is not installed.
    """
    split = split or benchmark.split
    tables = Tables(benchmark.repository, revision or benchmark.revision, split)
    samples = [
        Sample(
            id=question.id,
            image_id=_image_id(question.pictures),
            prompt=prompt or question.prompt,
            answer=question.answer,
            choices=question.choices,
            task=question.task,
            load=_Shown(question.pictures),
        )
        for question in benchmark.questions(tables)
    ]
    return samples, split, tables.commit


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row, left to right, each scaled to the tallest, with a grey border between.

    Source: what arXiv 2604.14363 shows its models where a question of BLINK has several pictures.

    Raises:
        ValueError: no picture.
    """
    height = max(picture.height for picture in pictures)
    scaled = [
        picture
        if picture.height == height
        else picture.resize(
            (max(1, int(picture.width * (height / picture.height))), height), Image.Resampling.LANCZOS
        )
        for picture in map(to_rgb, pictures)
    ]
    width = sum(picture.width for picture in scaled) + BORDER * (len(scaled) - 1)
    canvas = Image.new("RGB", (width, height), (GREY, GREY, GREY))
    left = 0
    for picture in scaled:
        canvas.paste(picture, (left, 0))
        left += picture.width + BORDER
    return canvas


def _image_id(pictures: Sequence[Picture]) -> str:
    """The same for all questions about the same pictures."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.encoded()).digest())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Shown:
    """Reads a question's pictures."""

    pictures: tuple[Picture, ...]

    def __call__(self) -> Image.Image:
        opened = [open_image(*_file(picture)) for picture in self.pictures]
        return opened[0] if len(opened) == 1 else side_by_side(opened)

    def size(self) -> tuple[int, int]:
        """Width and height: from the file's header where there is one picture."""
        return image_size(*_file(self.pictures[0])) if len(self.pictures) == 1 else self().size


def _file(picture: Picture) -> tuple[io.BytesIO, str]:
    """A picture's file, and what to call it."""
    return io.BytesIO(picture.encoded()), f"in {picture.column} of {picture.where}"
