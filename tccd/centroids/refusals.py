"""What a harvest refuses: before it runs, after its first batch, and in a folder that it is to go on in."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tccd.centroids.reading import Reading
from tccd.centroids.shards import Note, shard_path
from tccd.errors import FitError
from tccd.modality import Modality

_MORE_ROWS = "give more images, or a lower k"


def check_rows(wanted: Iterable[Modality], how: Reading, samples: int | None, least: int) -> None:
    """Refuse a harvest that can't come to enough rows, before the model runs or is even loaded.

    Args:
        wanted: modalities.
        how: which positions of a prompt are kept.
        samples: their number; None where it is not known.
        least: rows that each modality has to come to.

    Raises:
        FitError: there will be fewer; says how many at most.
    """
    for modality in wanted:
        each = how.most_rows(modality)
        if samples is not None and each is not None and samples * each < least:
            raise FitError(
                f"{modality}: {samples} samples give at most {samples * each} rows ({each} each), fewer than "
                f"k = {least}; {_MORE_ROWS}"
            )


def check_note(
    path: Path, note: Note, settings: str, asked: str, batch: Sequence[Any], digests: list[str], number: int
) -> None:
    """Refuse a shard that is not what this batch would make, by name.

    Args:
        path: of the shard.
        note: what it says of itself.
        settings: digest of the harvest's settings.
        asked: digest of the batch's ids and prompts.
        batch: samples.
        digests: of their pictures.
        number: of the batch, from 1.

    Raises:
        FitError: says what is another.
    """
    first = str(batch[0].id)
    if note.settings != settings:
        raise FitError(
            f"{path} was harvested with other settings than the rest of its folder: it came from another one. "
            "Delete it, and the harvest makes it again"
        )
    if note.samples != asked or len(note.pictures) != len(digests):
        raise FitError(
            f"{path} holds a harvest of other samples: batch {number} began with {note.first[:200]!r} there, and "
            f"begins with {first[:200]!r} now (ids or prompts differ). Give the same samples in the same order, "
            "or another folder"
        )
    for sample, there, now in zip(batch, note.pictures, digests, strict=True):
        if there != now:
            raise FitError(
                f"{path} was harvested from another picture of sample {str(sample.id)[:200]!r}: what the image "
                "shows has changed since. Delete the file, and the harvest makes it again; or give the old images"
            )


def check_estimate(rows: Mapping[str, int], done: int, how: Reading, samples: int | None, least: int) -> None:
    """Refuse, after the first batch, what can't come to enough rows.

    A text row more than the first prompts had is possible up to `text_tokens` where prompts differ; pictures of
    another size may have other numbers of vision tokens, so four times as many are held to be possible.

    Args:
        rows: that came so far, by name.
        done: samples that they came from.
        how: which positions of a prompt are kept.
        samples: their number in all; None where it is not known.
        least: rows that each (modality, layer) has to come to.

    Raises:
        FitError: there will be fewer.
    """
    if samples is None:
        return
    left = samples - done
    for name, count in rows.items():
        each = -(-count // done)
        if name.startswith("vision"):
            each *= 4
        elif how.prompt is None:
            each = how.text_tokens
        if count + left * each < least:
            raise FitError(
                f"{name}: the first {done} samples gave {count} rows, so {samples} give about "
                f"{count * samples // done}, fewer than k = {least}; {_MORE_ROWS}"
            )


def check_room(folder: Path, shard: Path, total: int | None, number: int) -> None:
    """Refuse, after the first shard, what the disk clearly has no room for.

    Args:
        folder: of the shards.
        shard: the one that was written.
        total: batches in all; None where it is not known.
        number: batches that are done.

    Raises:
        FitError: says how much room is needed, and how much there is.
    """
    if total is None:
        return
    left = sum(not shard_path(folder, batch).exists() for batch in range(number, total))
    need, free = left * shard.stat().st_size, shutil.disk_usage(folder).free
    if free < 0.8 * need:
        raise FitError(
            f"{folder} has {_size(free)} of free room, but the hidden states of the other {left} batches need "
            f"about {_size(need)}; give another folder (--work-dir), fewer images, or fewer layers"
        )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
