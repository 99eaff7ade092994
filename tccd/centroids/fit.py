"""Images -> a bank: harvest, then k-means for each (modality, layer), and the vision mean."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tccd.centroids.bank import CentroidBank
from tccd.centroids.entry import Entry, Key, key_name
from tccd.centroids.harvest import MANIFEST, Harvest, Layers, check_layers, gather
from tccd.centroids.kmeans import Backend, check_kmeans, kmeans
from tccd.centroids.reading import Reading
from tccd.decoder import find_decoder, identify
from tccd.errors import BusyError, ConfigError, FitError
from tccd.inputs import PAPER_PROMPT
from tccd.locking import locked
from tccd.modality import Modality

#: Rows that one k-means keeps in memory unless told otherwise: 3.5 GiB of fp32 at width 3,584.
MAX_ROWS = 2**18


def fit_bank(
    model: Any,
    processor: Any,
    samples: Iterable[Any],
    *,
    layers: Layers | None = None,
    k: int = 256,
    images: int | None = 2000,
    prompt: str | None = PAPER_PROMPT,
    text_tokens: int = 16,
    vision: Literal["tokens", "span"] = "tokens",
    max_vision_tokens_per_image: int | None = None,
    batch_size: int = 8,
    seed: int = 42,
    iterations: int = 20,
    backend: Backend = "auto",
    max_rows: int | None = MAX_ROWS,
    vision_mean: bool = True,
    data: str | None = None,
    created: str | None = None,
    work_dir: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> CentroidBank:
    """Fit a bank: harvest hidden states, cluster each (modality, layer), and take the vision mean.

    The defaults are those of the published fit (arXiv 2604.14363; text layer 12, vision layer 16 there). The
    same arguments, model and machine give the same bank, `created` aside.

    Args:
        model: a transformers vision-language model.
        processor: its processor.
        samples: objects with `image` (PIL), `prompt` and `id` (`tccd.data.load_samples`). Of several about one
            `image_id` the first is used, unless each has its own prompt.
        layers: decoder layers by modality, from 0; `{"text": 12, "vision": (16, 20)}`. None fits the vision mean
            alone, and needs no k-means: `k`, `iterations`, `backend` and `max_rows` then say nothing.
        k: centroids of each (modality, layer).
        images: use a seeded sample of so many samples of a sequence, in its order, or the first so many of
            another iterable; all of them when None or where there are fewer.
        prompt: as for `harvest`.
        text_tokens: as for `harvest`.
        vision: as for `harvest`.
        max_vision_tokens_per_image: as for `harvest`.
        batch_size: as for `harvest`.
        seed: of the samples, the harvest and k-means.
        iterations: of k-means.
        backend: of k-means.
        max_rows: rows that one k-means fits at most; a seeded sample where there are more. The bank's entries
            say how many were left out. None fits all, in memory.
        vision_mean: fit what the reference `mean-vision` needs, too: the mean over all vision tokens of what each
            decoder layer's attention is given. Give it 100 images or more. It takes the forward passes to the
            last layer, where they else end after the highest of `layers`: 1.6 times their time at text 12,
            vision 16 of 28 layers (0.92 B parameters, CPU); summing up adds nothing that was measurable.
        data: name of the data source, for the provenance; `samples.source` when None.
        created: time for the provenance, ISO 8601; now when None.
        work_dir: folder for the harvest, which is kept and resumed there; a temporary one when None, which is kept
            after a failure: a note on the error (`__notes__`) names it, to go on with.
        progress: called with a stage ("harvest", or an entry such as "text.12"), steps done, and their
            number, None where it is not known.

    Returns:
        The bank; `save` it, and read its `warnings`.

    Raises:
        BusyError: another run holds `work_dir`.
        ConfigError: a layer or another parameter is out of range.
        DataError: a prompt can't be asked, or an image can't be read.
        FitError: fewer finite rows than `k`, or `work_dir` holds another harvest.
        MissingExtraError: no k-means backend is installed.
        UnsupportedModelError: a layer has no attention, so that there is no vision mean.
        WriteError: the disk is full.

    Example:
        >>> bank = fit_bank(model, processor, samples, layers={"text": 3}, k=8, prompt=None)
        >>> bank.save("bank.safetensors")
        >>> bank.centroids("text", 3).k
        8
    """
    if not layers and not vision_mean:
        raise ConfigError("there is nothing to fit: expected layers such as {'text': 12}, or vision_mean=True")
    wanted = check_layers(layers, find_decoder(model)) if layers else {}
    if images is not None and (type(images) is not int or images < 1):
        raise ConfigError(f"images is {images!r}; expected a positive integer or None")
    how = Reading(prompt, text_tokens, batch_size, vision, max_vision_tokens_per_image, seed, vision_mean)
    if wanted:
        check_kmeans(k, seed, iterations, backend, max_rows)
    chosen = choose(samples, images, seed, one_each=prompt is not None)
    with harvest_folder(work_dir) as folder, locked(folder, "tccd fit"):
        on_batch = None if progress is None else lambda done, total: progress("harvest", done, total)
        found = gather(model, processor, chosen, wanted, folder, how, on_batch, k)
        tensors: dict[Key, torch.Tensor] = {}
        entries: dict[Key, Entry] = {}
        for key in [(modality, layer) for modality, at in wanted.items() for layer in at]:
            tensors[key], entries[key] = _cluster(found, key, k, seed, iterations, backend, max_rows, progress)
        mean, known = found.vision_sums().mean() if vision_mean else (None, None)
    provenance = {
        "data": data or getattr(samples, "source", None),
        "split": getattr(samples, "split", None),
        "data_revision": getattr(samples, "revision", None),
        "sources": list(getattr(samples, "parts", ())),
        "prompt": prompt,
        "images": found.manifest["samples"],
        "copies": found.manifest["copies"],
        "text_tokens": text_tokens,
        "short_tails": found.manifest["short_tails"],
        "vision": vision,
        "max_vision_tokens_per_image": max_vision_tokens_per_image,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": found.manifest["settings"]["dtype"],
        "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
        "pictures": found.manifest["pictures"],
        "vision_mean": known and {"images": len(found.manifest["pictures"]), **known},
    }
    return CentroidBank(identify(model), tensors, entries, provenance, vision_mean=mean)


def _cluster(
    found: Harvest,
    key: tuple[Modality, int],
    k: int,
    seed: int,
    iterations: int,
    backend: Backend,
    max_rows: int | None,
    progress: Callable[[str, int, int | None], None] | None,
) -> tuple[torch.Tensor, Entry]:
    name = key_name(key)
    if progress is not None:
        progress(name, 0, 1)
    try:
        result = kmeans(found.rows(*key), k, seed, iterations, backend, max_rows)
    except FitError as error:
        raise FitError(f"{name}: {error}") from error
    if progress is not None:
        progress(name, 1, 1)
    shared = {f.name: getattr(result, f.name) for f in fields(Entry) if f.name != "k"}
    return torch.from_numpy(result.centroids), Entry(k=k, **shared)


@contextmanager
def harvest_folder(work_dir: str | Path | None) -> Iterator[Path]:
    """The folder of a harvest: the caller's own, or a temporary one that goes when all is well.

    After a failure the hidden states stay, for they may have taken hours: a note on the error says how to go on.

    Args:
        work_dir: the caller's folder; None for a temporary one.
    """
    folder = Path(tempfile.mkdtemp(prefix="tccd-harvest-")) if work_dir is None else Path(work_dir)
    try:
        yield folder
    except BaseException as error:
        begun = (folder / MANIFEST).exists() and any(folder.glob("batch-*.safetensors"))
        # What is wrong with the harvest itself tells by that what to do with the caller's folder.
        told = isinstance(error, FitError) and work_dir is not None and str(folder) in str(error)
        if begun and not told and not isinstance(error, BusyError):
            note = f"The hidden states are kept in {folder}; go on with --work-dir {folder} and the same options"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        elif work_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if work_dir is None:
        shutil.rmtree(folder, ignore_errors=True)


def choose(samples: Iterable[Any], images: int | None, seed: int, one_each: bool = False) -> Iterable[Any]:
    """A seeded sample of a sequence, in its order; the first so many of another iterable.

    Args:
        samples: objects with `id` and, where there are several about one image, `image_id`.
        images: how many; all when None.
        seed: of the sample.
        one_each: take the first sample of each image only.
    """
    if not isinstance(samples, Sequence):
        return itertools.islice(_first_of_each(samples) if one_each else samples, images)
    at = np.arange(len(samples))
    if one_each:
        first: dict[Any, int] = {}
        for i, sample in enumerate(samples):
            first.setdefault(_image_id(sample), i)
        at = np.array(list(first.values()), dtype=np.int64)
    if images is not None and len(at) > images:
        at = np.sort(np.random.default_rng(seed).choice(at, images, replace=False))
    return _Chosen(samples, at)


def _image_id(sample: Any) -> Any:
    return getattr(sample, "image_id", sample.id)


def _first_of_each(samples: Iterable[Any]) -> Iterator[Any]:
    seen = set()
    for sample in samples:
        if _image_id(sample) not in seen:
            seen.add(_image_id(sample))
            yield sample


class _Chosen(Sequence[Any]):
    """Some items of a sequence, each fetched when it is asked for."""

    def __init__(self, samples: Sequence[Any], picked: np.ndarray):
        self._samples, self._picked = samples, picked

    def __len__(self) -> int:
        return len(self._picked)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return _Chosen(self._samples, self._picked[at])
        return self._samples[int(self._picked[at])]
