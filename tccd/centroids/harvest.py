"""Images and prompts -> hidden states of chosen decoder layers, on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tccd.atomic import write_atomic
from tccd.centroids.reading import Reader, Reading, pictures_of
from tccd.centroids.shards import Note, Rows, read_note, shard_path, write_shard
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
            raise FitError(f"{name} was not harvested; {self.folder} holds {', '.join(held)}")
        return Rows([shard_path(self.folder, i) for i in range(self.manifest["batches"])], name)


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
    on_batch: Callable[[int, int | None], None] | None = None,
) -> Harvest:
    """Run prompts through a model and keep the outputs of chosen decoder layers.

    The defaults are those of the published fit (arXiv 2604.14363): one fixed prompt, the first 16 text tokens
    after the image, the vision tokens. The forward pass ends after the highest layer asked for. Rows keep the
    model's dtype: fp16 can't hold all that bf16 can.

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
        on_batch: called after each batch with the batches done and their number, None where it is not known.

    Raises:
        ConfigError: a layer or another parameter is out of range.
        DataError: a sample has no image, or a prompt can't be asked (`tccd.inputs.check_samples`).
        BusyError: another run holds the folder.
        FitError: the folder holds a harvest with other settings, samples or images, or a file that was changed,
            says which; no samples came; or the disk has too little room.
        ModalityError: the vision positions of a prompt can't be told.
        WriteError: the disk is full, or the folder can't be written.
    """
    wanted = check_layers(layers, find_decoder(model))
    how = Reading(prompt, text_tokens, batch_size, vision, max_vision_tokens_per_image, seed)
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
    if isinstance(samples, Sequence):
        check_samples(model, processor, samples, how.prompt)
    settings = _settings(model, decoder, wanted, how)
    _open(folder, settings)
    digest = _digest(_told(settings))
    total = None if count is None else -(-count // how.batch_size)
    reader = Reader(decoder, processor, wanted, how)
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
            _check_note(path, note, digest, asked, batch, digests, tally.batches + 1)
        else:
            rows, short = reader.read(batch, pictures, tally.samples)
            note = Note(
                digest, asked, str(batch[0].id), digests, short, {n: len(part) for n, part in rows.items()}
            )
            write_shard(path, rows, note)
            if not tally.written:
                _check_room(folder, path, total, tally.batches + 1)
            tally.written += 1
        tally.add(note, batch)
        if tally.batches == 1:
            _check_estimate(tally, how, count, least_rows)
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


def check_layers(layers: Layers, decoder: Decoder) -> dict[Modality, tuple[int, ...]]:
    """The layers of each modality, ascending, each of them the model's.

    Raises:
        ConfigError: unknown modality, no layer at all, or a layer that the model does not have.
    """
    found: dict[Modality, tuple[int, ...]] = {}
    for modality, given in layers.items():
        if modality not in MODALITIES:
            raise ConfigError(f"unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}")
        many = given if isinstance(given, Iterable) else (given,)
        found[modality] = tuple(sorted({decoder.check_layer(layer) for layer in many}))
    if not any(found.values()):
        raise ConfigError("no layer is asked for; expected something like {'text': 12, 'vision': 16}")
    return {modality: at for modality, at in sorted(found.items()) if at}


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


_NO_SAMPLES = "there are no samples to harvest; give at least one"
_MORE_ROWS = "give more images, or a lower k"


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


def _check_note(
    path: Path, note: Note, settings: str, asked: str, batch: Sequence[Any], digests: list[str], number: int
) -> None:
    """Refuse a shard that is not what this batch would make, by name."""
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


def _check_estimate(tally: _Tally, how: Reading, samples: int | None, least: int) -> None:
    """Refuse, after the first batch, what can't come to enough rows.

    A text row more than the first prompts had is possible up to `text_tokens` where prompts differ; pictures of
    another size may have other numbers of vision tokens, so four times as many are held to be possible.
    """
    if samples is None:
        return
    left = samples - tally.samples
    for name, count in tally.rows.items():
        each = -(-count // tally.samples)
        if name.startswith("vision"):
            each *= 4
        elif how.prompt is None:
            each = how.text_tokens
        if count + left * each < least:
            raise FitError(
                f"{name}: the first {tally.samples} samples gave {count} rows, so {samples} give about "
                f"{count * samples // tally.samples}, fewer than k = {least}; {_MORE_ROWS}"
            )


def _check_room(folder: Path, shard: Path, total: int | None, number: int) -> None:
    """Refuse, after the first shard, what the disk clearly has no room for."""
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
