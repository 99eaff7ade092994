"""Images and prompts -> hidden states of chosen decoder layers, on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.centroids.shards import Rows, read_note, shard_path, write_shard
from tccd.decoder import Decoder, find_decoder, first_tensor, identify
from tccd.errors import ConfigError, DataError, FitError
from tccd.inputs import PAPER_PROMPT, encode
from tccd.modality import MODALITIES, SEGMENTS, Modality, ModalityMap, modality_map, vision_token_ids

Layers = Mapping[Modality, int | Sequence[int]]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Harvest:
    """A finished harvest on disk.

    Attributes:
        folder: where the shards and the manifest are.
        manifest: settings, number of samples and batches, `short_tails` (prompts with fewer text tokens after
            the image than asked for), and rows by name such as `text.12`.
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
    same arguments, goes on after the last finished batch; those are skipped without loading their images.

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
        DataError: a sample has no image.
        FitError: the folder holds a harvest with other settings or samples, says which; or no samples came.
        ModalityError: the vision positions of a prompt can't be told.
    """
    decoder = find_decoder(model)
    wanted = check_layers(layers, decoder)
    for name, value in (("text_tokens", text_tokens), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}; expected a positive integer")
    if max_vision_tokens_per_image is not None and max_vision_tokens_per_image < 1:
        raise ConfigError(
            f"max_vision_tokens_per_image is {max_vision_tokens_per_image!r}; expected a positive integer or None"
        )
    if vision not in SEGMENTS["vision"]:
        raise ConfigError(f"vision is {vision!r}; expected one of {', '.join(SEGMENTS['vision'])}")
    folder = Path(out_dir)
    settings = {
        "model": asdict(identify(model)),
        "dtype": str(next(decoder.layers.parameters()).dtype).removeprefix("torch."),
        "layers": {modality: list(at) for modality, at in wanted.items()},
        "prompt": prompt,
        "text_tokens": text_tokens,
        "batch_size": batch_size,
        "vision": vision,
        "max_vision_tokens_per_image": max_vision_tokens_per_image,
        "seed": seed,
    }
    _open(folder, settings)
    total = -(-len(samples) // batch_size) if isinstance(samples, Sized) else None
    reader = _Reader(decoder, wanted, vision_token_ids(model.config))
    counts: dict[str, int] = {}
    batches = number = short_tails = 0
    for batches, batch in enumerate(_batched(samples, batch_size), start=1):
        path = shard_path(folder, batches - 1)
        ids = [str(sample.id) for sample in batch]
        prompts = [sample.prompt if prompt is None else prompt for sample in batch]
        digest = hashlib.sha256(json.dumps([ids, prompts]).encode()).hexdigest()
        if path.exists():
            note = read_note(path)
            if note["samples"] != digest:
                raise FitError(
                    f"{folder} holds a harvest of other samples: batch {batches} began with "
                    f"{note['first']!r} there, and begins with {ids[0]!r} now (ids or prompts differ). "
                    "Give the same samples in the same order, or another folder"
                )
        else:
            chances = [np.random.default_rng([seed, number + i]) for i in range(len(batch))]
            inputs = _encode(processor, batch, prompts, model)
            segments, short = _segments(
                reader.map(inputs), text_tokens, vision, max_vision_tokens_per_image, chances
            )
            rows = reader.read(inputs, segments)
            note = {
                "samples": digest,
                "first": ids[0],
                "short_tails": short,
                "rows": {name: len(part) for name, part in rows.items()},
            }
            write_shard(path, rows, note)
        number += len(batch)
        short_tails += int(note["short_tails"])  # type: ignore[call-overload]
        for name, count in note["rows"].items():  # type: ignore[attr-defined]
            counts[name] = counts.get(name, 0) + count
        if on_batch is not None:
            on_batch(batches, total)
    if not batches:
        raise FitError("there are no samples to harvest; give at least one")
    if shard_path(folder, batches).exists():
        raise FitError(
            f"{folder} holds a harvest of more samples than the {number} given; give the same samples, or "
            "another folder"
        )
    manifest = {
        "settings": settings,
        "complete": True,
        "samples": number,
        "batches": batches,
        "short_tails": short_tails,
        "rows": counts,
    }
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


class _Done(Exception):
    """Ends a forward pass after the last layer that is wanted."""


class _Reader:
    """Forward hooks that keep chosen positions of chosen layers."""

    def __init__(self, decoder: Decoder, wanted: dict[Modality, tuple[int, ...]], vision_ids: tuple[int, ...]):
        self.decoder, self.wanted, self.vision_ids = decoder, wanted, vision_ids

    def map(self, inputs: dict[str, Tensor]) -> ModalityMap:
        return modality_map(inputs["input_ids"], self.vision_ids, inputs.get("attention_mask"), has_images=True)

    @torch.no_grad()
    def read(self, inputs: dict[str, Tensor], segments: dict[Modality, Tensor]) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        last = max(max(at) for at in self.wanted.values())

        def keep(layer: int, output: Any) -> None:
            hidden = first_tensor(output)
            for modality, at in self.wanted.items():
                if layer in at:
                    mask = segments[modality].to(hidden.device)
                    rows[f"{modality}.{layer}"] = hidden[mask].cpu()
            if layer == last:
                raise _Done

        model = self.decoder.model
        handles = [
            self.decoder.layers[layer].register_forward_hook(
                lambda _module, _args, output, layer=layer: keep(layer, output)
            )
            for layer in sorted(set().union(*self.wanted.values()))
        ]
        training = model.training
        model.eval()
        try:
            model(**inputs, use_cache=False)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
        return rows


def _segments(
    where: ModalityMap,
    text_tokens: int,
    vision: str,
    most: int | None,
    chances: list[np.random.Generator],
) -> tuple[dict[Modality, Tensor], int]:
    text = where.tail & (where.tail.cumsum(-1) <= text_tokens)
    short = int((where.tail.sum(-1) < text_tokens).sum())
    seen = where.segment("vision", vision).clone()
    if most is not None:
        for row, chance in zip(seen, chances, strict=True):
            at = row.nonzero().squeeze(-1)
            if len(at) > most:
                row[at] = False
                row[at[torch.from_numpy(chance.permutation(len(at))[:most]).to(at.device)]] = True
    return {"text": text, "vision": seen}, short


def _encode(processor: Any, batch: Sequence[Any], prompts: Sequence[str], model: Any) -> dict[str, Tensor]:
    images = []
    for sample in batch:
        image = sample.image
        if image is None:
            raise DataError(f"sample {sample.id!r} has no image; a harvest needs one a sample")
        images.append([image])
    encoded = encode(processor, images, prompts)
    device, dtype = model.device, model.dtype
    return {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in encoded.items()
        if isinstance(value, Tensor)
    }


def _batched(samples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _open(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / MANIFEST
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if shard_path(folder, 0).exists():
            raise FitError(f"{folder} holds shards without a {MANIFEST}; delete them, or give another folder")
        _write_manifest(folder, {"settings": settings, "complete": False})
        return
    try:
        there = json.loads(path.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise FitError(f"{path} is damaged ({error}); delete the folder, or give another") from error
    differ = [
        f"{name}: {there.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted({*there, *settings})
        if there.get(name) != settings.get(name)
    ]
    if differ:
        raise FitError(
            f"{folder} holds a harvest with other settings ({'; '.join(differ)}); give the same settings to "
            "resume it, or another folder"
        )


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
