"""What `verify` asks: requests of every kind, and a bank of the model's own states where none is given."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from tccd.centroids.bank import CentroidBank
from tccd.centroids.harvest import harvest
from tccd.data import Sample, load_samples
from tccd.decoder import find_decoder
from tccd.decoding.vllm.settings import PREFIX
from tccd.errors import ConfigError
from tccd.inputs import encode, format_prompt
from tccd.loading import Loaded, load_model
from tccd.verify.answering import Ask

#: Centroids of a bank made here, and pictures whose text states they are.
K, PICTURES = 16, 16
SIZES = ((224, 224), (320, 240), (168, 336), (448, 448))
#: What the requests ask for; one has no image and one has two.
MIX: tuple[dict[str, Any] | None, ...] = (
    {"alpha_cd": 1.0},
    None,
    {"alpha_cd": 0.5, "alpha_interp": 0.0},
    {"alpha_cd": 1.5, "alpha_interp": 0.7},
    {"alpha_cd": 2.0, "beta": 0.1},
    {"gate": "margin", "gate_threshold": 0.5, "gate_ramp": 0.2},
    None,
    {"alpha_interp": 0.2, "tokens": "first"},
)
NO_IMAGE, TWO_IMAGES = 6, 3
#: What one prompt asks for, over and over, from the prefix cache.
VARIANTS: tuple[dict[str, Any] | None, ...] = (None, {"alpha_interp": 0.4}, {"alpha_interp": 0.0}, None, {})


@dataclass(frozen=True)
class Prepared:
    """What the engine is asked.

    Attributes:
        bank: file.
        layer: decoder layer whose text centroids are used.
        k: their number.
        dtype: of the weights.
        requests, variants, timed: see `answering.trial`.
        longest: tokens of context that they may need.
    """

    bank: Path
    layer: int
    k: int
    dtype: str
    requests: list[Ask]
    variants: list[Ask]
    timed: list[Ask]
    longest: int


def prepare(
    model: str,
    bank: Path | None,
    made: Path,
    *,
    layer: int | None,
    dtype: str,
    data: str | None,
    number: int,
    trust_remote_code: bool,
) -> Prepared:
    """Settle the layer and dtype, make requests, and a bank where none is given.

    Args:
        model: hub id or folder.
        bank: file; None for one of `K` random text states of the model itself.
        made: file for that one.
        layer: None for the bank's lowest, or two fifths up.
        dtype: or `auto`, the checkpoint's own.
        data: a data source for images and prompts; None for synthetic ones.
        number: of requests.
        trust_remote_code: run the repository's code.

    Raises:
        TCCDError: the model, the bank or the data can't be read, or there is no such layer.
    """
    held = None if bank is None else CentroidBank.load(bank)
    loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    processor, words = loaded.processor, _words(loaded.processor.tokenizer)
    pictures = [_synthetic(words, i) for i in range(PICTURES)]
    samples: Sequence[Any] = load_samples(data, per_image=1, limit=number) if data else pictures
    if held is None:
        held = _make_bank(loaded, pictures, layer)
        held.save(made)
    layers = held.layers("text")
    layer = next(iter(layers), None) if layer is None else layer
    if layer is None or layer not in layers:
        raise ConfigError(f"{bank} has text centroids at layers {list(layers)}; asked for {layer}")
    on = {PREFIX + "layer": layer}

    def request(prompt: str, images: tuple[Any, ...], asked: Mapping[str, Any] | None) -> Ask:
        extra = None if asked is None else on | {PREFIX + name: value for name, value in asked.items()}
        return Ask(prompt, _ids(processor, prompt, len(images)), images, extra)

    # Without a template nothing stands between two images, which not every model can tell apart then.
    several = 2 if getattr(processor, "chat_template", None) else 1
    requests = []
    for i in range(number):
        at, sample = i % len(MIX), samples[i % len(samples)]
        images = (sample.image,) * {NO_IMAGE: 0, TWO_IMAGES: several}.get(at, 1)
        requests.append(request(sample.prompt, images, MIX[at]))
    long = _text(words, 150, seed=1)
    variants = [request(long, (pictures[0].image,), asked) for asked in VARIANTS]
    timed = [request(_text(words, 60, i), (pictures[len(SIZES) * i].image,), {}) for i in range(4)]
    lengths = [
        encode(processor, [r.images], [r.prompt])["input_ids"].shape[1] for r in (*requests, *variants, *timed)
    ]
    return Prepared(
        bank=bank or made,
        layer=layer,
        k=held.centroids("text", layer).k,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        requests=requests,
        variants=variants,
        timed=timed,
        longest=max(lengths),
    )


def _ids(processor: Any, prompt: str, images: int) -> list[int]:
    text = format_prompt(processor, prompt, images)
    bos = getattr(processor.tokenizer, "bos_token", None)
    return list(processor.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])


def _make_bank(loaded: Loaded, samples: Sequence[Any], layer: int | None) -> CentroidBank:
    layer = 2 * find_decoder(loaded.model).num_layers // 5 if layer is None else layer
    with tempfile.TemporaryDirectory() as name:
        found = harvest(loaded.model, loaded.processor, samples, {"text": layer}, name, prompt=None, batch_size=1)
        rows = torch.unique(torch.from_numpy(found.rows("text", layer)[:]), dim=0)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:K]
    return CentroidBank.from_arrays(loaded.model, {("text", layer): rows[picked]})


def _words(tokenizer: Any) -> list[str]:
    """Words that are one token each, so that any tokenizer knows them."""
    bare = (token.lstrip("Ġ▁") for token in tokenizer.get_vocab())
    return sorted({word for word in bare if re.fullmatch(r"[a-z][a-z0-9]{1,8}", word)}) or ["what", "is", "it"]


def _text(words: Sequence[str], count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(words, k=count))


def _synthetic(words: Sequence[str], number: int) -> Sample:
    """Noise, and a shape on noise by turns, of several sizes."""
    size = SIZES[number % len(SIZES)]
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    if number % 2:
        draw, (width, height) = ImageDraw.Draw(image), size
        shape = draw.ellipse if number % 4 == 1 else draw.rectangle
        shape((width // 5, height // 5, width * 4 // 5, height * 4 // 5), fill=(200, 30 * (number % 8), 60))
    count = (6, 12, 30, 60)[number % 4]
    return Sample(str(number), str(number), _text(words, count, number), None, None, None, lambda: image)
