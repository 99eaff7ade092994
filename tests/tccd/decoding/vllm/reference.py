"""What a request's answer has to be: two whole forwards of transformers and a hook, for each token it chose."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tccd import CentroidBank
from tccd.decoding.config import TCCDConfig
from tccd.decoding.contrast import contrast
from tests import oracle
from tests.tccd.decoding.vllm.host import Ask
from tests.tccd.decoding.vllm.jobs import Reply

#: Where our engines keep an implausible token's log-probability, and where it stops to matter.
NOTHING = -5000.0


#: The nearest centroid jumps where two are as near: closer calls than this are left to rounding.
FAIR = 1e-4


class Unfair(Exception):
    """Two centroids are as near to a state: no two computations need agree."""


@lru_cache
def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor in fp32."""
    import transformers as hf

    seeing = hasattr(hf.AutoConfig.from_pretrained(folder), "vision_config")
    kind = hf.AutoModelForImageTextToText if seeing else hf.AutoModelForCausalLM
    reader = hf.AutoProcessor if seeing else hf.AutoTokenizer
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), reader.from_pretrained(folder)


def inputs(folder: Path, ask: Ask) -> dict[str, Any]:
    """The prompt as transformers takes it."""
    _, processor = load(folder)
    images = {"images": list(ask.images)} if ask.images else {}
    found = dict(processor(text=ask.prompt, return_tensors="pt", **images))
    return {k: v for k, v in found.items() if k not in ("image_sizes", "token_type_ids")}


def distributions(
    folder: Path, bank: CentroidBank, ask: Ask, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of each step along `tokens`, and of the prompt's positions: (steps, vocabulary) each."""
    model, _ = load(folder)
    batch = inputs(folder, ask)
    prompt = batch["input_ids"].shape[1]
    for token in tokens[:-1]:
        batch = oracle.extend(batch, torch.tensor([token]))
    clean = oracle.full_logits(model, batch)[0].float()
    steps = clean[prompt - 1 :]
    extra = {k.removeprefix("tccd_"): v for k, v in (ask.extra or {}).items()}
    extra.pop("bank", None)
    if extra:
        kind = extra.pop("reference", "text-centroid")
        description = extra.pop("prompt", None)
        if kind == "vision-centroid":
            extra = {"alpha_interp": 0.0} | extra
        config = TCCDConfig(**extra)
        if kind in ("text-centroid", "vision-centroid"):
            other = _moved(model, bank, batch, config, kind)[prompt - 1 :]
        elif kind == "no-vision":
            kept = [t for t in batch["input_ids"][0].tolist() if t not in oracle.vision_ids_of(model)]
            other = _text_only(model, kept)[len(kept) - len(steps) :]
        elif kind == "blank-image":
            other = _grey(folder, ask, tokens)[prompt - 1 :]
        else:
            other = _other_prompt(folder, ask, json.loads(description), tokens)
        combined = contrast(steps, other, config)[0]
        steps = torch.cat([combined[:1], steps[1:]]) if config.tokens == "first" else combined
    return steps.log_softmax(-1), clean[: prompt - 1].log_softmax(-1)


def _moved(model: Any, bank: CentroidBank, batch: dict[str, Any], config: TCCDConfig, kind: str) -> torch.Tensor:
    """Logits of the whole sequence with states moved to centroids."""
    modality = kind.partition("-")[0]
    layer = bank.layers(modality)[0] if config.layer is None else config.layer
    brute = oracle.BruteForce(bank.tensors[modality, layer], config.alpha_interp)
    ids, vision = batch["input_ids"], oracle.vision_ids_of(model)
    if modality == "text":
        where = oracle.tail_mask(ids, torch.ones_like(ids), vision)
    else:
        where = torch.tensor([[token in vision for token in row] for row in ids.tolist()])
    moved = oracle.full_logits(model, batch, layer, where, brute)[0].float()
    if brute.gap < FAIR:
        raise Unfair(brute.gap)
    return moved


def _text_only(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of text alone, at positions 0, 1, 2, ..."""
    row = torch.tensor([ids])
    return oracle.full_logits(model, {"input_ids": row, "attention_mask": torch.ones_like(row)})[0].float()


def _grey(folder: Path, ask: Ask, tokens: list[int]) -> torch.Tensor:
    """Logits of the whole sequence with a grey picture of the same size for each image, through the processor."""
    greys = tuple(Image.new("RGB", image.size, (128, 128, 128)) for image in ask.images)
    other = inputs(folder, Ask(ask.prompt, greys))
    for token in tokens[:-1]:
        other = oracle.extend(other, torch.tensor([token]))
    return oracle.full_logits(load(folder)[0], other)[0].float()


def _other_prompt(folder: Path, ask: Ask, description: dict[str, Any], tokens: list[int]) -> torch.Tensor:
    """Logits along the same answer after another prompt, made by the processor itself."""
    model, _ = load(folder)
    if "tokens" in description:
        kept = [*description["tokens"], *tokens[:-1]]
        return _text_only(model, kept)[len(description["tokens"]) - 1 :]
    text = description["text"]
    seen = ask.images if "image" in text and "<" in text else ()
    other = inputs(folder, Ask(text, tuple(seen)))
    length = other["input_ids"].shape[1]
    for token in tokens[:-1]:
        other = oracle.extend(other, torch.tensor([token]))
    return oracle.full_logits(model, other)[0].float()[length - 1 :]


def check(folder: Path, bank: CentroidBank, ask: Ask, reply: Reply, greedy: bool = True) -> float:
    """Every sequence of a reply against transformers; the largest difference of a log-probability.

    Raises:
        AssertionError: another prompt, another token, or a log-probability off by more than 1e-3.
    """
    assert reply.prompt == inputs(folder, ask)["input_ids"][0].tolist()
    worst = 0.0
    for tokens, found in zip(reply.tokens, reply.logprobs, strict=True):
        wanted, _ = distributions(folder, bank, ask, tokens)
        if greedy:
            assert tokens == wanted.argmax(-1).tolist()
        worst = max(worst, difference(found, wanted.numpy()))
    assert worst < 1e-3, f"log-probabilities are off by {worst}"
    return worst


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference; what neither side gives any probability counts as equal."""
    nothing = (found < NOTHING) & (wanted < NOTHING)
    return float(np.where(nothing, 0.0, np.abs(found - wanted)).max())
