"""What becomes of one architecture: each reference in each scene, against two whole uncached forwards."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tccd import TCCD, CentroidBank
from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import no_vision
from tccd.errors import TCCDError
from tests import oracle
from tests.census.architectures import Architecture
from tests.census.pictures import batch_of
from tests.tiny import HIDDEN, TEXT_IDS, Row

LAYER, STEPS = 1, 3
#: Largest difference of a logit that counts as exact; where plain cached decoding differs by more from whole
#: forwards, as much more is allowed as the contrast's formula makes of it.
TOLERANCE = 1e-4
#: In fp32, of the largest logit: less than that is no difference, however well plain decoding happens to agree.
ROUNDINGS = 5
#: A logit as large as this stands for a token that can't be.
FORBIDDEN = 1e30

SCENES = {
    "single": [Row()],
    "two images": [Row(images=2)],
    "ragged": [Row(before=3, after=5), Row(images=1, after=8)],
    "without an image": [Row(), Row(images=0, before=6)],
}


@dataclass
class Verdict:
    """What became of one architecture.

    Attributes:
        outcome: "exact", "refused", "not built", or a failure: "wrong", "crash".
        reason: of a refusal or a failure, or why it was not built.
        error: largest difference of a logit from the oracle's; NaN where nothing ran.
        noise: the same of plain cached decoding.
        left_out: scenes that the model itself can't run.
    """

    outcome: str
    reason: str = ""
    error: float = math.nan
    noise: float = math.nan
    left_out: list[str] = field(default_factory=list)


def judge(row: Architecture) -> Verdict:
    """Build it and try everything."""
    try:
        model = row.build()
    except Exception as error:
        return Verdict("not built", _said(error))
    try:
        contrasts = _contrasts(model)
    except TCCDError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("crash", _said(error))
    found, seen = Verdict("exact", error=0.0, noise=0.0), 0
    for name, rows in SCENES.items():
        try:
            batch = batch_of(row, model, rows)
            plain = _plain(model, batch)
        except Exception as error:
            found.left_out.append(f"{name} ({_said(error)})")
            continue
        seen += 1
        found.noise = max(found.noise, plain)
        for what, (contrast, reference) in contrasts.items():
            try:
                error = _difference(model, batch, contrast, reference)
            except TCCDError as refusal:
                return Verdict("refused", str(refusal), left_out=found.left_out)
            except Exception as crash:
                return Verdict("crash", f"{what}, {name}: {_said(crash)}", left_out=found.left_out)
            found.error = max(found.error, error)
            if not error <= max(TOLERANCE, 8 * plain):
                return Verdict("wrong", f"{what}, {name}", error, plain, found.left_out)
    return found if seen else _without_scenes(model, contrasts, found.left_out)


def _without_scenes(model: Any, contrasts: dict[str, tuple[Any, Any]], left_out: list[str]) -> Verdict:
    """Of a model that takes no image by its tokens: whether a contrast is refused on words with a picture."""
    if oracle.vision_ids_of(model):  # it does, and fails for another reason
        return Verdict("not built", "no scene runs: " + "; ".join(left_out))
    words = torch.tensor([list(TEXT_IDS)[:6]])
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    if "pixel_values" in inspect.signature(model.forward).parameters:
        batch["pixel_values"] = torch.zeros(1, 3, 16, 16)
    try:
        for contrast, _ in contrasts.values():
            _generated(model, batch, custom_generate=contrast)
    except TCCDError as refusal:
        return Verdict("refused", str(refusal))
    except Exception as error:
        left_out = [*left_out, f"words ({_said(error)})"]
    return Verdict("not built", "no scene runs: " + "; ".join(left_out))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


Reference = Callable[[dict[str, Any]], Tensor]


def _contrasts(model: Any) -> dict[str, tuple[Any, Reference]]:
    width = getattr(model.config.get_text_config(), "hidden_size", HIDDEN)
    centroids = 2 * torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    bank = CentroidBank.from_arrays(model, {("text", LAYER): centroids})
    erase = oracle.BruteForce(centroids, 0.4)

    def erased(batch: dict[str, Any]) -> Tensor:
        attention = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        where = oracle.tail_mask(batch["input_ids"], attention, oracle.vision_ids_of(model))
        return oracle.full_logits(model, batch, LAYER, where, erase)

    return {
        "text-centroid": (TCCD(model, bank, alpha_cd=1.0, alpha_interp=0.4), erased),
        "no-vision": (
            Contrast(model, no_vision(), alpha_cd=1.0),
            lambda batch: oracle.withheld_logits(model, batch),
        ),
    }


def _plain(model: Any, batch: dict[str, Any]) -> float:
    """How far plain cached decoding is from whole forwards, in the largest logit, or a few roundings of that."""
    made = _generated(model, batch)
    sizes = made[1][..., TEXT_IDS.start : TEXT_IDS.stop].abs()
    rounding = ROUNDINGS * torch.finfo(torch.float32).eps * float(sizes[sizes < FORBIDDEN].max())
    return max(rounding, _apart(model, batch, made, lambda clean, longer: clean))


def _difference(model: Any, batch: dict[str, Any], contrast: Any, reference: Reference) -> float:
    def rule(clean: Tensor, longer: dict[str, Any]) -> Tensor:
        return 2 * clean - reference(longer)[:, -1].float()

    return _apart(model, batch, _generated(model, batch, custom_generate=contrast), rule)


def _generated(model: Any, batch: dict[str, Any], **more: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = model.generate(
            **batch,
            max_new_tokens=STEPS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **more,
        )
    return output.sequences[:, -STEPS:], torch.stack(output.logits, 1)


def _apart(model: Any, batch: dict[str, Any], made: tuple[Tensor, Tensor], rule: Any) -> float:
    tokens, logits = made
    worst, longer = 0.0, batch
    for step in range(STEPS):
        wanted = rule(oracle.full_logits(model, longer)[:, -1].float(), longer)[:, TEXT_IDS.start : TEXT_IDS.stop]
        found = logits[:, step, TEXT_IDS.start : TEXT_IDS.stop].float()
        told = wanted.abs() < FORBIDDEN  # Chameleon forbids its image tokens
        if not bool(told.any(-1).all()):
            raise ValueError("the oracle's logits are not finite")
        worst = max(worst, float((found - wanted)[told].abs().nan_to_num(math.inf).max()))
        longer = oracle.extend(longer, tokens[:, step])
    return worst
