"""Several values of `--data`, each with its own split and revision where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tccd.data import Samples


def load_sets(
    data: Sequence[str],
    splits: Sequence[str | None],
    revisions: Sequence[str | None],
    *,
    images: int | None,
    per_image: int | None,
    seed: int,
    prompt: str | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> list[Samples]:
    """The samples of each source, of its train split where it has one.

    Args:
        data: sources.
        splits: one each; see `tccd.cli.options.each`.
        revisions: one each.
        images: of each source, at most.
        per_image: samples of each image, at most.
        seed: of the draw.
        prompt: asked about every image instead of the sources' own.
        columns: as for `tccd.data.load_samples`.

    Raises:
        DataError: a source is unknown, empty or malformed, or an argument doesn't fit it.
        MissingExtraError: a source needs an extra.
    """
    from tccd.data import load_samples

    return [
        load_samples(
            source,
            split=split,
            images=images,
            per_image=per_image,
            seed=seed,
            revision=revision,
            prompt=prompt,
            columns=columns,
            purpose="fit",
        )
        for source, split, revision in zip(data, splits, revisions, strict=True)
    ]
