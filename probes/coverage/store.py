"""The codes of a data set's samples on disk, read one after another, and put together by picture.

What stays in memory is 8 bytes a sample, which picture it shows, and the pictures that are not complete yet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Record:
    """What one sample hits.

    Attributes:
        text, vision: numbers of the centroids that a row of it is nearest to, each once, ascending.
        tokens: its text rows.
        home: of text and of vision, the centroid that its mean row is nearest to.
        spread: of text and of vision, the squared distance of that mean to the centroid.
    """

    text: Codes
    vision: Codes
    tokens: int
    home: tuple[int, int]
    spread: tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """What one picture hits, with all that is said about it.

    Attributes:
        number: of the picture, in the order in which they are complete.
        samples: numbers of its samples.
        text, vision: as `Record`, over all of them.
        tokens: text rows of all of them.
    """

    number: int
    samples: tuple[int, ...]
    text: Codes
    vision: Codes
    tokens: int


_HEAD = np.dtype([("text", "<u4"), ("vision", "<u4"), ("tokens", "<u4"), ("home", "<u4", 2), ("spread", "<f4", 2)])


@dataclass
class Store:
    """Records of a set in a temporary file, in the order of its samples."""

    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _digests: list[NDArray[np.uint64]] = field(default_factory=list)

    def add(self, records: list[Record], digests: list[str]) -> None:
        """Append records.

        Args:
            records: of samples.
            digests: of their pictures, 16 hexadecimal digits each.
        """
        for one in records:
            head = np.array((len(one.text), len(one.vision), one.tokens, one.home, one.spread), dtype=_HEAD)
            self._file.write(head.tobytes())
            self._file.write(one.text.astype("<u4").tobytes())
            self._file.write(one.vision.astype("<u4").tobytes())
        self._digests.append(np.array([int(digest, 16) for digest in digests], dtype=np.uint64))

    @property
    def digests(self) -> NDArray[np.uint64]:
        """Which picture each sample shows, shape (samples,)."""
        return np.concatenate(self._digests) if self._digests else np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return sum(map(len, self._digests))

    def __iter__(self) -> Iterator[Record]:
        self._file.flush()
        self._file.seek(0)
        while head := self._file.read(_HEAD.itemsize):
            found = np.frombuffer(head, _HEAD)[0]
            text, vision = (
                np.frombuffer(self._file.read(4 * int(found[name])), "<u4").astype(np.int64)
                for name in ("text", "vision")
            )
            home, spread = found["home"].tolist(), found["spread"].tolist()
            yield Record(text, vision, int(found["tokens"]), (home[0], home[1]), (spread[0], spread[1]))

    def pictures(self) -> Iterator[Picture]:
        """The set by picture: copies, and all samples about one picture, are one."""
        _, which, left = np.unique(self.digests, return_inverse=True, return_counts=True)
        which = which.reshape(-1)
        open_: dict[int, tuple[list[int], Codes, Codes, int]] = {}
        done = 0
        for number, record in enumerate(self):
            picture = int(which[number])
            left[picture] -= 1
            if picture in open_:
                samples, text, vision, tokens = open_.pop(picture)
                text, vision = np.union1d(text, record.text), np.union1d(vision, record.vision)
            else:
                samples, text, vision, tokens = [], record.text, record.vision, 0
            samples.append(number)
            if left[picture]:
                open_[picture] = samples, text, vision, tokens + record.tokens
                continue
            yield Picture(done, tuple(samples), text, vision, tokens + record.tokens)
            done += 1


def pairs(text: Codes, vision: Codes, vision_codes: int) -> Codes:
    """Numbers of the pairs of a text code and a vision code that one picture brings together.

    Args:
        text, vision: codes of the picture, each once.
        vision_codes: size of the vision codebook.
    """
    return (text[:, None] * vision_codes + vision).reshape(-1)
