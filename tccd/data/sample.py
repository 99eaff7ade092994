"""One question about one image, and a sequence of them that knows where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import overload

from PIL import Image

from tccd.data.pictures import image_size, open_image, picture_digest, to_rgb
from tccd.data.records import cut
from tccd.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Attributes:
        id: unique within its source, and the same in every load of it.
        image_id: the same for all samples about one image.
        prompt: the question, without image tokens or chat template.
        answer: the right answer; None where the source has none.
        choices: the answers to choose among, `answer` one of them; None for an open question. Nothing adds them
            to `prompt`: where they are letters, it says what each stands for.
        task: the kind of question, by which results are grouped; None where the source tells none.
        load: reads the image, anew at each call. Where it has a method `size`, that tells the image's width and
            height for less.
        facts: what is said to be in the image, each fact one to three texts, such as an object, an attribute and a
            relation; None where the source tells none. `tccd probe coverage` counts them.

    Raises:
        DataError: the answer is not among the choices.

    Example:
        >>> from PIL import Image
        >>> blank = lambda: Image.new("L", (8, 8))
        >>> Sample("0", "blank", "What color is it?", "black", ("black", "red"), "color", blank).image.mode
        'RGB'
    """

    id: str
    image_id: str
    prompt: str
    answer: str | None
    choices: tuple[str, ...] | None
    task: str | None
    load: Callable[[], Image.Image] = field(compare=False, repr=False)
    facts: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.choices is not None and self.answer is not None and self.answer not in self.choices:
            raise DataError(
                f"sample {cut(self.id)}: the answer {cut(repr(self.answer))} is not among the choices "
                f"{cut(str(list(self.choices)))}; expected the same text in both"
            )

    @property
    def image(self) -> Image.Image:
        """The image in RGB, read at each access.

        Raises:
            DataError: the image can't be read, or `to_rgb` refuses it; names the sample and its file.
        """
        try:
            return to_rgb(self.load())
        except DataError as error:
            raise DataError(f"sample {cut(self.id)}: {error}") from error

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of `image` in pixels; reads no more of a file than its header.

        Raises:
            DataError: the file is missing or no image, or `to_rgb` refuses it by its header; names the sample.
        """
        measure = getattr(self.load, "size", None)
        if measure is None:
            return self.image.size
        try:
            return measure()
        except DataError as error:
            raise DataError(f"sample {cut(self.id)}: {error}") from error

    @cached_property
    def picture_digest(self) -> str:
        """What the image shows, as 16 hexadecimal digits; the same for copies under other names.

        Raises:
            DataError: as `image`.
        """
        return picture_digest(self.image)


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """Samples in the order of their source.

    Attributes:
        items: the samples.
        source: name of the data source; of a local one the last part of its path, which others may read.
        split: the split that was read; None where the source has none.
        revision: commit of the hub repository; None for a local source.
        parts: of a union, what each of its sources was (see `union`); none of a single source.
    """

    items: tuple[Sample, ...]
    source: str
    split: str | None = None
    revision: str | None = None
    parts: tuple[dict[str, str | int | None], ...] = ()

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)


def union(parts: Sequence[Samples]) -> Samples:
    """Several sources as one.

    Where there are several, ids get the number of their source before them, so that none stands twice.

    Args:
        parts: at least one; their order is kept.

    Returns:
        A single source as it is; of several, `source` names them all and `parts` tells each.
    """
    if len(parts) == 1:
        return parts[0]
    items = [
        replace(sample, id=f"{number}/{sample.id}", image_id=f"{number}/{sample.image_id}")
        for number, part in enumerate(parts, 1)
        for sample in part
    ]
    told: list[dict[str, str | int | None]] = [
        {"data": one.source, "split": one.split, "data_revision": one.revision, "samples": len(one)}
        for one in parts
    ]
    return Samples(tuple(items), " + ".join(one.source for one in parts), parts=tuple(told))


@dataclass(frozen=True)
class ImageFile:
    """Reads an image file; for `Sample.load`.

    Attributes:
        path: the file.
        name: what to call it in an error; its path when None.
    """

    path: Path
    name: str | None = None

    def __call__(self) -> Image.Image:
        """The image in RGB."""
        return open_image(self.path, self.name)

    def size(self) -> tuple[int, int]:
        """Width and height, from the file's header."""
        return image_size(self.path, self.name)
