"""One name -> samples: which reader a data source needs, and which of its samples are taken."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from tccd.data.benchmarks import BENCHMARKS, read_benchmark
from tccd.data.digits import read_digits
from tccd.data.easy_vqa import read_easy_vqa
from tccd.data.hub import is_saved, open_split, read_split
from tccd.data.local import IMAGE_SUFFIXES, read_folder, read_manifest
from tccd.data.records import cut, is_text, shown
from tccd.data.sample import Sample, Samples
from tccd.errors import DataError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
Purpose = Literal["fit", "probe"]
#: The split that each purpose takes where there is a choice: what is asked must not be what was fitted on.
_SPLIT_OF: dict[Purpose | None, str | None] = {"fit": "train", "probe": "test", None: None}
#: Ends of names of files; a data set on the hub has none of them.
_FILE_SUFFIXES = (
    ".arrow",
    ".csv",
    ".json",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".tsv",
    ".txt",
    ".zip",
    *IMAGE_SUFFIXES,
)
_BUILT_IN = {"easy-vqa": read_easy_vqa, "digits": read_digits}
_SOURCES = (
    f"expected {', '.join((*_BUILT_IN, *BENCHMARKS))}, a folder of images, of parquet files or as "
    "datasets.save_to_disk writes it, a JSON lines manifest (*.jsonl), "
    "or the id of a data set on the Hugging Face hub (owner/name or owner/name:configuration)"
)


def load_samples(
    source: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    images: int | None = None,
    per_image: int | None = None,
    seed: int | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    purpose: Purpose | None = None,
) -> Samples:
    """Read images, prompts and answers from a data source. Images are opened when asked for.

    Args:
        source: one of
            - `easy-vqa`: the PyPI package (extra `data`);
            - `digits`: questions about scikit-learn's handwritten digits (extra `sklearn`);
            - a benchmark of `tccd.data.benchmarks` by its name (extra `data`): `blink`, `mmvp`, `cv-bench`,
              `pope`, `scienceqa-img`, `medblink`;
            - a folder of images, searched with the folders below it; the prompt is the published fit's, there
              are no answers;
            - a JSON lines manifest (`*.jsonl`) with `image` (path relative to the manifest), `prompt`, and
              optionally `answer`, `choices`, `task`, `id`;
            - a data set for the `datasets` library (extra `data`), streamed: `owner/name` or
              `owner/name:configuration` on the hub, or a local folder with parquet files or a metadata file, or
              one that `save_to_disk` of `datasets` wrote.
        split: of easy-vqa and digits `test` or `train`; of a benchmark the published one (when None) or
            another; of a data set, needed where it has several. When None, `purpose` chooses.
        limit: at most so many samples, after `images` and `per_image`.
        images: at most so many distinct images, with all their samples (in a streamed data set, those that
            come before the first of a further image).
        per_image: at most so many samples of each image.
        seed: draws images and samples at random rather than from the start; the source's order is kept. A
            streamed data set is shuffled by shard and within a buffer instead, which is only near to uniform.
        revision: branch, tag or commit of a data set on the hub; of a benchmark its pinned commit when None.
        prompt: asked about every image instead of the source's own prompts.
        columns: which column or key holds `image`, `prompt`, `answer`, `choices`, `task`, `id`, where it is
            named otherwise; None leaves a field out. For manifests and data sets.
        purpose: what the samples are for, which chooses the split where none is given: "fit" takes `train`,
            "probe" takes `test`, of easy-vqa, digits, and data sets with several splits, one of them so called.
            When None, easy-vqa and digits take `test`, and a data set with several splits needs `split`.

    Raises:
        DataError: the source is unknown, empty or malformed, or an argument doesn't fit it.
        MissingExtraError: the source needs the extra `data` or `sklearn`.

    Example:
        >>> from tccd.data import load_samples
        >>> samples = load_samples("easy-vqa", limit=2)
        >>> samples[0].prompt, samples[0].answer, samples[0].image.size
        ('what is the red shape?', 'triangle', (64, 64))
    """
    for name, value in (("limit", limit), ("images", images), ("per_image", per_image)):
        if value is not None and value <= 0:
            raise DataError(f"{name} is {value}; expected at least 1, or None for all")
    if purpose is not None and purpose not in get_args(Purpose):
        raise DataError(f"purpose is {purpose!r}; expected fit, probe or None")
    if prompt is not None and not (is_text(prompt) and prompt.strip()):
        raise DataError(
            f"prompt is {shown(prompt)}; expected a question about the image that is not empty, or None for the "
            "source's own"
        )

    def refuse(kind: str, **unused: object) -> None:
        for name, value in unused.items():
            if value is not None:
                raise DataError(f"{name} is {value!r}, but {kind} has no {name}; leave it out")

    if not source.strip():
        raise DataError(f"the data source is empty; {_SOURCES}")
    path = _path(source)
    commit: str | None = None
    streamed = False
    found: Iterable[Sample]
    if source in _BUILT_IN:
        refuse(source, revision=revision, columns=columns)
        split = split or _SPLIT_OF[purpose] or "test"
        found = _BUILT_IN[source](split, prompt)
    elif source in BENCHMARKS:
        refuse(source, columns=columns)
        found, split, commit = read_benchmark(BENCHMARKS[source], split, revision, prompt)
    elif os.path.isdir(path) and not _holds_data_set(path):
        refuse("a folder of images", split=split, revision=revision, columns=columns)
        found = read_folder(path, prompt)
    elif os.path.isfile(path):
        if path.suffix.lower() not in (".jsonl", ".ndjson"):
            raise DataError(f"{source} is a file of unknown kind; {_SOURCES}")
        refuse("a manifest", split=split, revision=revision)
        found = read_manifest(path, prompt, columns)
    elif os.path.isdir(path):
        refuse("a local folder", revision=revision)
        hub = open_split(str(path), split, None, _SPLIT_OF[purpose])
        split, found = hub.split, read_split(hub, prompt, columns, seed)
        streamed = True
    elif _HUB_ID.fullmatch(source) and not _means_path(source):
        hub = open_split(source, split, revision, _SPLIT_OF[purpose])
        split, commit, found = hub.split, hub.revision, read_split(hub, prompt, columns, seed)
        streamed = True
    else:
        raise DataError(f"no such file or folder: {cut(repr(source))}; {_SOURCES}")
    items = _take(found, limit, images, per_image, None if streamed else seed, streamed)
    if not items:
        raise DataError(f"{source} holds no samples")
    named = source in _BUILT_IN or source in BENCHMARKS
    name = path.resolve().name if not named and os.path.exists(path) else source
    return Samples(items, source=name, split=split, revision=commit)


def _path(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except (RuntimeError, ValueError):  # ~ of a user that there is not; half a surrogate pair
        return Path(source)


def _means_path(source: str) -> bool:
    """Whether a source that could be a data set on the hub can only have been meant for a path."""
    return (
        source.startswith((".", "~"))
        or Path(source).suffix.lower() in _FILE_SUFFIXES
        or os.path.isdir(source.partition("/")[0])
    )


def _holds_data_set(folder: Path) -> bool:
    return is_saved(folder) or any(
        next(folder.rglob(name), None) is not None for name in ("*.parquet", "metadata.csv", "metadata.jsonl")
    )


def _take(
    found: Iterable[Sample],
    limit: int | None,
    images: int | None,
    per_image: int | None,
    seed: int | None,
    streamed: bool,
) -> tuple[Sample, ...]:
    """What `load_samples` was asked for: the first of them, or drawn by seed.

    A stream is left as soon as there are enough images; files are searched for all samples of those images.
    """
    items: list[Sample] = []
    ids: set[str] = set()
    counts: Counter[str] = Counter()
    for sample in found:
        if seed is None:
            if sample.image_id not in counts and len(counts) == images:
                if streamed:
                    break
                continue
            if counts[sample.image_id] == per_image:
                continue
        counts[sample.image_id] += 1
        if sample.id in ids:
            raise DataError(f"two samples have the id {cut(repr(sample.id))}; expected ids that differ, or none")
        ids.add(sample.id)
        items.append(sample)
        if seed is None and len(items) == limit:
            break
    if seed is not None:
        draw = random.Random(seed)
        if images is not None and images < len(counts):
            kept = set(draw.sample(list(counts), images))
            items = [item for item in items if item.image_id in kept]
        if per_image is not None:
            groups: dict[str, list[int]] = {}
            for index, item in enumerate(items):
                groups.setdefault(item.image_id, []).append(index)
            drawn = (draw.sample(group, min(per_image, len(group))) for group in groups.values())
            items = [items[i] for i in sorted(index for group in drawn for index in group)]
        if limit is not None and limit < len(items):
            items = [items[i] for i in sorted(draw.sample(range(len(items)), limit))]
    return tuple(items)
