"""transformers' half of `verify`: a bank and requests before, and two whole forwards with a hook after."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tccd.centroids.bank import CentroidBank
from tccd.centroids.harvest import harvest
from tccd.cli.model import Loaded, load_model
from tccd.data import Sample, load_samples
from tccd.decoder import find_decoder, first_tensor, replace_first
from tccd.decoding.config import TCCDConfig
from tccd.decoding.contrast import contrast
from tccd.decoding.vllm.settings import PREFIX
from tccd.decoding.vllm.verify_engine import Reply, Request
from tccd.errors import TCCDError
from tccd.inputs import encode, format_prompt
from tccd.modality import vision_token_ids

#: Below it a log-probability is none: an implausible token's, which vLLM gets far below and transformers at -inf.
NOTHING = -5000.0
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


@dataclass(frozen=True)
class Prepared:
    """What the engine is asked.

    Attributes:
        bank: file.
        layer: decoder layer whose text centroids are used.
        k: their number.
        dtype: of the weights.
        requests, variants, timed: see `verify_engine.trial`.
        longest: tokens of context that they may need.
    """

    bank: Path
    layer: int
    k: int
    dtype: str
    requests: list[Request]
    variants: list[Request]
    timed: list[Request]
    longest: int


def prepare(
    model: str,
    bank: Path | None,
    folder: Path,
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
        folder: where that one goes.
        layer: None for the bank's lowest, or two fifths up.
        dtype: or `auto`, the checkpoint's own.
        data: a data source for images and prompts; None for synthetic ones.
        number: of requests.
        trust_remote_code: run the repository's code.

    Raises:
        TCCDError: the model, the bank or the data can't be read, or the bank has no such layer.
    """
    loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    words = _words(loaded.processor.tokenizer)
    made = [_synthetic(words, i) for i in range(PICTURES)]
    samples: Sequence[Any] = load_samples(data, images=number, limit=number) if data else made
    if bank is None:
        layer = 2 * find_decoder(loaded.model).num_layers // 5 if layer is None else layer
        bank = _make_bank(loaded, made, layer, folder)
    held = CentroidBank.load(bank)
    layer = next(iter(held.layers("text")), None) if layer is None else layer
    if layer not in held.layers("text"):
        raise TCCDError(f"{bank} has text centroids at layers {list(held.layers('text'))}, not at {layer}")
    on = {PREFIX + "layer": layer}
    # Without a template nothing stands between two images, which not every model can tell apart then.
    several = 2 if getattr(loaded.processor, "chat_template", None) else 1
    requests = []
    for i in range(number):
        at = i % len(MIX)
        sample, asked = samples[i % len(samples)], MIX[at]
        images = (sample.image,) * {NO_IMAGE: 0, TWO_IMAGES: several}.get(at, 1)
        extra = None if asked is None else on | {PREFIX + name: value for name, value in asked.items()}
        requests.append(_request(loaded.processor, sample.prompt, images, extra))
    long = _text(words, 150, seed=1)
    variants = [
        _request(
            loaded.processor,
            long,
            (made[0].image,),
            None if alpha is None else on | {PREFIX + "alpha_interp": alpha},
        )
        for alpha in (None, 0.4, 0.0, None, 0.4)
    ]
    timed = [_request(loaded.processor, _text(words, 60, i), (made[3 + 4 * i].image,), on) for i in range(4)]
    lengths = [
        encode(loaded.processor, [r.images], [r.prompt])["input_ids"].shape[1]
        for r in (*requests, *variants, *timed)
    ]
    name = str(loaded.model.dtype).removeprefix("torch.")
    return Prepared(
        bank, layer, held.centroids("text", layer).shape[0], name, requests, variants, timed, max(lengths)
    )


def _request(processor: Any, prompt: str, images: tuple[Any, ...], extra: dict[str, Any] | None) -> Request:
    text = format_prompt(processor, prompt, len(images))
    bos = getattr(processor.tokenizer, "bos_token", None)
    ids = processor.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    return Request(prompt, list(ids), images, extra)


def _make_bank(loaded: Loaded, samples: Sequence[Any], layer: int, folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as name:
        found = harvest(loaded.model, loaded.processor, samples, {"text": layer}, name, prompt=None, batch_size=1)
        rows = torch.unique(torch.from_numpy(found.rows("text", layer)[:]), dim=0)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:K]
    file = folder / "bank.safetensors"
    CentroidBank.from_arrays(loaded.model, {("text", layer): rows[picked]}).save(file)
    return file


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


# After the engine


@dataclass(frozen=True)
class Step:
    """One step of a reply against transformers.

    Attributes:
        largest: largest difference of a log-probability.
        typical: median difference.
        equal: whether transformers' likeliest token is the one that vLLM chose.
        contrasted: whether TCCD decides on this step.
        broken: the typical difference that a broken stream would show, by its kind.
    """

    largest: float
    typical: float
    equal: bool
    contrasted: bool
    broken: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A reply against transformers.

    Attributes:
        steps: one a token.
        prompt_equal: whether both saw the same prompt tokens; there are no steps if not.
        gap: how near two centroids came to being as near, as a share of the row's norm: below rounding no two
            computations need to agree.
    """

    steps: list[Step]
    prompt_equal: bool
    gap: float


def check(
    model: str, bank: Path, layer: int, dtype: str, asked: Sequence[tuple[Request, Reply]], trust_remote_code: bool
) -> list[Checked]:
    """Every reply against two whole forwards of transformers along the reply's own tokens."""
    loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    centroids = CentroidBank.load(bank).centroids("text", layer).double().to(loaded.model.device)
    return [_check(loaded, centroids, layer, request, reply) for request, reply in asked]


@torch.no_grad()
def _check(loaded: Loaded, centroids: Tensor, layer: int, request: Request, reply: Reply) -> Checked:
    model, processor = loaded
    device = model.device
    inputs = encode(processor, [request.images], [request.prompt]).to(device, model.dtype)
    prompt = inputs["input_ids"].shape[1]
    if inputs["input_ids"][0].tolist() != reply.prompt:
        return Checked([], False, 0.0)
    vision = set(vision_token_ids(model.config))
    # A vision token without an image means nothing; a model that was never trained may generate one.
    tokens = reply.tokens[: next((i + 1 for i, t in enumerate(reply.tokens) if t in vision), None)]
    more = torch.tensor([tokens[:-1]], dtype=torch.long, device=device)
    batch = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if name in batch:
            batch[name] = torch.cat([batch[name], torch.full_like(more, value, dtype=batch[name].dtype)], 1)
    ids = batch["input_ids"][0].tolist()
    tail = next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in vision), len(ids))

    def logits(erasure: Erasure | None = None, end: int | None = None) -> Tensor:
        handle = None
        if erasure is not None:

            def hook(_module: Any, _args: Any, output: Any) -> Any:
                hidden = first_tensor(output).clone()
                hidden[0, tail:end] = erasure(hidden[0, tail:end])
                return replace_first(output, hidden)

            handle = find_decoder(model).layers[layer].register_forward_hook(hook)
        try:
            return model(**batch, use_cache=False).logits[0, prompt - 1 :].float()
        finally:
            if handle is not None:
                handle.remove()

    clean = logits()
    if request.extra is None:
        steps = [
            _step(f, w, t, False) for f, w, t in zip(reply.logprobs, clean.log_softmax(-1), tokens, strict=False)
        ]
        return Checked(steps, True, 1.0)
    config = TCCDConfig(**{name.removeprefix(PREFIX): value for name, value in request.extra.items()})

    def decided(erased: Tensor) -> Tensor:
        combined = contrast(clean, erased, config)[0]
        if config.tokens == "first":
            combined = torch.cat([combined[:1], clean[1:]])
        return combined.log_softmax(-1)

    erasure = Erasure(centroids, config.alpha_interp)
    wanted = decided(logits(erasure))
    broken = {
        "no contrast": clean.log_softmax(-1),
        "other centroids": decided(logits(Erasure(centroids, config.alpha_interp, shift=1))),
        "generated tokens not erased": decided(logits(Erasure(centroids, config.alpha_interp), prompt)),
    }
    steps = []
    for i, (found, token) in enumerate(zip(reply.logprobs, tokens, strict=False)):
        contrasted = config.tokens == "all" or i == 0
        steps.append(_step(found, wanted[i], token, contrasted, {name: b[i] for name, b in broken.items()}))
    return Checked(steps, True, erasure.gap)


class Erasure:
    """Replacement by definition: every distance, in fp64. Remembers the closest call between two centroids.

    Args:
        centroids: shape (K, hidden), fp64.
        alpha_interp: what is kept of a row's offset from its centroid.
        shift: take the centroid so many places after the nearest: a broken erasure.
    """

    def __init__(self, centroids: Tensor, alpha_interp: float, shift: int = 0) -> None:
        self.centroids, self.alpha_interp, self.shift, self.gap = centroids, alpha_interp, shift, 1.0

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows of shape (n, hidden), replaced, in their dtype."""
        out = rows.clone()
        for i, row in enumerate(rows):
            x = row.double()
            distances = (self.centroids - x).norm(dim=-1)
            if len(distances) > 1:
                first, second = distances.sort().values[:2].tolist()
                self.gap = min(self.gap, (second - first) / float(x.norm()))
            mu = self.centroids[(int(distances.argmin()) + self.shift) % len(distances)]
            out[i] = (mu + self.alpha_interp * (x - mu)).to(rows.dtype)
        return out


def difference(found: Sequence[float], wanted: Sequence[float]) -> tuple[float, float]:
    """Largest and median difference of log-probabilities; what neither side gives any probability is left out."""
    a, b = torch.tensor([list(found), list(wanted)], dtype=torch.float64).clamp(min=2 * NOTHING)
    there = (a >= NOTHING) | (b >= NOTHING)
    off = (a - b)[there].abs()
    return float(off.max()), float(off.median())


def _step(
    found: dict[int, float], wanted: Tensor, token: int, contrasted: bool, broken: dict[str, Tensor] | None = None
) -> Step:
    at = list(found)
    right = wanted[at].tolist()
    largest, typical = difference(list(found.values()), right)
    shown = {name: difference(other[at].tolist(), right)[1] for name, other in (broken or {}).items()}
    return Step(largest, typical, int(wanted.argmax()) == token, contrasted, shown)
