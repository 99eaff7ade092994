"""Images and prompts -> hidden states of chosen decoder layers, and sums for the vision mean, on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tccd.atomic import write_atomic
from tccd.centroids.reading import Reader, Reading, pictures_of
from tccd.centroids.refusals import check_estimate, check_note, check_room, check_rows
from tccd.centroids.shards import Note, Rows, read_note, read_tensors, shard_path, write_shard
from tccd.centroids.vision_mean import VisionSums
from tccd.data.pictures import picture_digest
from tccd.decoder import Decoder, find_decoder, identify
from tccd.errors import ConfigError, FitError
from tccd.inputs import PAPER_PROMPT, check_samples
from tccd.locking import locked
from tccd.modality import MODALITIES, Modality

Layers = Mapping[Modality, int | Sequence[int]]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Harvest:
    """A finished harvest on disk.

    Attributes:
        folder: where the shards and the manifest are.
        manifest: settings, number of samples and batches, `short_tails` (prompts with fewer text tokens after
            the image than asked for), rows by name such as `text.12`, `pictures` (digests of what the images show)
            and `copies` (images that show the same as another).
    """

    folder: Path
    manifest: dict[str, Any]

    def rows(self, modality: Modality, layer: int) -> Rows:
        """The rows of one modality at one layer, shape (rows, hidden), read from disk as they are asked for.

        Raises:
            FitError: not harvested; lists what was.
        """
        name = f"{modality}.{layer}"
        held = self.manifest["rows"]
        if name not in held:
            raise FitError(f"{name} was not harvested; {self.folder} holds {', '.join(held) or 'no rows'}")
        return Rows(self._shards(), name)

    def vision_sums(self) -> VisionSums:
        """What each decoder layer's attention is given for vision tokens, summed up over all prompts.

        Raises:
            FitError: they were not asked for.
        """
        if not self.manifest["settings"]["vision_mean"]:
            raise FitError(f"{self.folder} holds no sums for the vision mean; harvest with vision_mean=True")
        return VisionSums.total(read_tensors(path, VisionSums.NAMES) for path in self._shards())

    def _shards(self) -> list[Path]:
        return [shard_path(self.folder, i) for i in range(self.manifest["batches"])]


def harvest(
    model: Any,
    processor: Any,
    samples: Iterable[Any],
    layers: Layers,
    out_dir: str | Path,
    *,
    prompt: str | None = PAPER_PROMPT,
    text_tokens: int = 16,
    batch_size: int = 8,
    vision: Literal["tokens", "span"] = "tokens",
    max_vision_tokens_per_image: int | None = None,
    seed: int = 42,
    vision_mean: bool = False,
    on_batch: Callable[[int, int | None], None] | None = None,
) -> Harvest:
    """Run prompts through a model and keep the outputs of chosen decoder layers, at chosen positions.

    The defaults are those of the published fit (arXiv 2604.14363): one fixed prompt, the first 16 text tokens
    after the image, the vision tokens. The forward pass ends after the highest layer asked for, and with
    `vision_mean` before the model's last. Rows keep the model's dtype: fp16 can't hold all that bf16 can.

    One shard a batch is written at once or not at all, so that an interrupted harvest, called again with the
    same arguments, goes on after the last finished batch. Each shard keeps digests of the settings, the samples
    and what their images show, and a checksum of its rows; on resuming, the images are read and each shard is
    checked against them, without a forward. One harvest at a time holds the folder.

    Args:
        model: a transformers vision-language model, on any device.
        processor: its processor.
        samples: objects with `image` (PIL), `prompt` and `id`; the same ones in the same order on resuming.
        layers: decoder layers by modality, from 0; `{"text": 12, "vision": (16, 20)}`.
        out_dir: folder for the shards; made where needed.
        prompt: one prompt for all samples; each sample's own when None.
        text_tokens: text tokens after the image to keep of each prompt; all there are where there are fewer.
        batch_size: prompts a forward pass.
        vision: "tokens" keeps the vision tokens; "span" everything from first to last of them, the paper's
            contiguous reading.
        max_vision_tokens_per_image: keep a seeded sample of so many vision rows of a prompt; all when None.
        seed: of that sample.
        vision_mean: sum up, too, what each layer's attention is given at every vision token
            (`Harvest.vision_sums`); `layers` may then be empty.
        on_batch: called after each batch with the batches done and their number, None where it is not known.

    Raises:
        ConfigError: a layer or another parameter is out of range.
        DataError: a sample has no image, or a prompt can't be asked (`tccd.inputs.check_samples`).
        BusyError: another run holds the folder.
        FitError: the folder holds a harvest with other settings, samples or images, or a file that was changed,
            says which; no samples came; or the disk has too little room.
        ModalityError: the vision positions of a prompt can't be told.
        UnsupportedModelError: the vision mean is asked for, and a layer has no attention.
        WriteError: the disk is full, or the folder can't be written.
    """
    how = Reading(prompt, text_tokens, batch_size, vision, max_vision_tokens_per_image, seed, vision_mean)
    wanted = check_layers(layers, find_decoder(model), or_none=vision_mean)
    with locked(Path(out_dir), "a harvest of hidden states"):
        return gather(model, processor, samples, wanted, Path(out_dir), how, on_batch)


def gather(
    model: Any,
    processor: Any,
    samples: Iterable[Any],
    wanted: dict[Modality, tuple[int, ...]],
    folder: Path,
    how: Reading,
    on_batch: Callable[[int, int | None], None] | None = None,
    least_rows: int = 0,
) -> Harvest:
    """`harvest` into a folder that the caller has locked.

    Args:
        model: as for `harvest`; so are the others.
        processor: its processor.
        samples: what to run.
        wanted: layers by modality, as `check_layers` returns them.
        folder: for the shards.
        how: which prompts, and which of their positions.
        on_batch: called after each batch.
        least_rows: rows that each (modality, layer) has to come to.

    Raises:
        FitError: as `harvest`; or there will be fewer rows than `least_rows`, told as soon as it can be.
    """
    decoder = find_decoder(model)
    count = len(samples) if isinstance(samples, Sized) else None
    if count == 0:
        raise FitError(_NO_SAMPLES)
    check_rows(wanted, how, count, least_rows)
    reader = Reader(decoder, processor, wanted, how)
    if isinstance(samples, Sequence):
        check_samples(model, processor, samples, how.prompt)
    settings = _settings(model, decoder, wanted, how)
    _open(folder, settings)
    digest = _digest(_told(settings))
    total = None if count is None else -(-count // how.batch_size)
    tally = _Tally()
    for batch in _batched(samples, how.batch_size):
        if not isinstance(samples, Sequence):
            check_samples(model, processor, batch, how.prompt)
        path = shard_path(folder, tally.batches)
        pictures = pictures_of(batch)
        digests = [picture_digest(picture) for picture in pictures]
        asked = _digest([[str(sample.id) for sample in batch], how.prompts(batch)])
        if path.exists():
            note = read_note(path)
            check_note(path, note, digest, asked, batch, digests, tally.batches + 1)
        else:
            rows, sums, short, _ = reader.read(batch, pictures, tally.samples)
            if sums is not None and not tally.batches:
                sums.check()  # what overflows does so at once
            lengths = {name: len(part) for name, part in rows.items()}
            note = Note(digest, asked, str(batch[0].id), digests, short, lengths)
            write_shard(path, rows if sums is None else rows | sums.tensors(), note)
            if not tally.written:
                check_room(folder, path, total, tally.batches + 1)
            tally.written += 1
        tally.add(note, batch)
        if tally.batches == 1:
            check_estimate(tally.rows, tally.samples, how, count, least_rows)
        if on_batch is not None:
            on_batch(tally.batches, total)
    if not tally.batches:
        raise FitError(_NO_SAMPLES)
    if shard_path(folder, tally.batches).exists():
        raise FitError(
            f"{shard_path(folder, tally.batches)} is left of a harvest of more samples than the {tally.samples} "
            "given; give the same samples, or another folder"
        )
    manifest = {"settings": settings, "complete": True, **tally.told()}
    _write_manifest(folder, manifest)
    return Harvest(folder, manifest)


def check_layers(layers: Layers, decoder: Decoder, or_none: bool = False) -> dict[Modality, tuple[int, ...]]:
    """The layers of each modality, ascending, each of them the model's.

    Args:
        layers: as for `harvest`.
        decoder: of the model.
        or_none: whether there may be none.

    Raises:
        ConfigError: unknown modality, no layer at all, or a layer that the model does not have.
    """
    found: dict[Modality, tuple[int, ...]] = {}
    for modality, given in layers.items():
        if modality not in MODALITIES:
            raise ConfigError(f"unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}")
        many = given if isinstance(given, Iterable) else (given,)
        found[modality] = tuple(sorted({decoder.check_layer(layer) for layer in many}))
    if not or_none and not any(found.values()):
        raise ConfigError("no layer is asked for; expected something like {'text': 12, 'vision': 16}")
    return {modality: at for modality, at in sorted(found.items()) if at}


_NO_SAMPLES = "there are no samples to harvest; give at least one"


@dataclass
class _Tally:
    """What came so far."""

    batches: int = 0
    written: int = 0
    samples: int = 0
    short_tails: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, None] = field(default_factory=dict)
    image_ids: set[str] = field(default_factory=set)

    def add(self, note: Note, batch: Sequence[Any]) -> None:
        self.batches += 1
        self.samples += len(batch)
        self.short_tails += note.short_tails
        self.pictures.update(dict.fromkeys(note.pictures))
        self.image_ids.update(str(getattr(sample, "image_id", sample.id)) for sample in batch)
        for name, count in note.rows.items():
            self.rows[name] = self.rows.get(name, 0) + count

    def told(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "batches": self.batches,
            "short_tails": self.short_tails,
            "copies": len(self.image_ids) - len(self.pictures),
            "rows": self.rows,
            "pictures": list(self.pictures),
        }


def _settings(
    model: Any, decoder: Decoder, wanted: dict[Modality, tuple[int, ...]], how: Reading
) -> dict[str, Any]:
    return {
        "model": asdict(identify(model)),
        "dtype": str(next(decoder.layers.parameters()).dtype).removeprefix("torch."),
        "layers": {modality: list(at) for modality, at in wanted.items()},
        **asdict(how),
    }


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that rows depend on: a model's weights, where they are known, and not its name."""
    model = settings["model"]
    return {**settings, "model": model.get("fingerprint") or model}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _batched(samples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _open(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / MANIFEST
    if not path.exists():
        if shard_path(folder, 0).exists():
            raise FitError(f"{folder} holds shards without a {MANIFEST}; delete them, or give another folder")
        _write_manifest(folder, {"settings": settings, "complete": False})
        return
    try:
        there = json.loads(path.read_text())["settings"]
        mine, theirs = _told(settings), _told(there)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = str(error)[:200] if isinstance(error, ValueError) else "it does not describe a harvest"
        raise FitError(f"{path} is damaged ({fault}); delete the folder, or give another") from error
    differ = [
        f"{name}: {repr(there.get(name))[:200]} there, {repr(settings.get(name))[:200]} now"
        for name in sorted({*theirs, *mine})
        if theirs.get(name) != mine.get(name)
    ]
    if differ:
        raise FitError(
            f"{folder} holds a harvest with other settings ({'; '.join(differ)}); give the same settings to "
            "resume it, or another folder"
        )


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
