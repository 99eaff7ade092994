"""How many of the images are copies of others, under another name."""

from __future__ import annotations

from collections.abc import Iterable

from tccd.data.sample import Sample


def copies(samples: Iterable[Sample]) -> int:
    """The images that show what another one shows: distinct image ids less distinct pictures.

    Reads every image once, unless its `picture_digest` is known.

    Raises:
        DataError: an image can't be read.
    """
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.image_id, sample)
    return len(first) - len({sample.picture_digest for sample in first.values()})
