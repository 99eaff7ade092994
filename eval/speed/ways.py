"""Ways to decode in transformers that are timed against each other: plain, every reference, and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from eval.baselines.two_pass import two_pass
from eval.speed.models import IMAGE
from eval.speed.timing import Seconds
from tccd import TCCD, CentroidBank, Contrast
from tccd.decoding.references import (
    centroid_erasure,
    early_exit,
    mean_vision,
    no_vision,
    noised_image,
    text_centroid,
    vision_centroid,
)
from tccd.engine import KeptImage, OtherPrompt
from tccd.engine.attention import grouped_attention

ALPHA_CD, ALPHA_INTERP, BETA, GATE = 1.0, 0.4, 0.1, "margin"


class Run(NamedTuple):
    """Times of one generation."""

    prefill: Seconds
    decode: Seconds


class Stamps(StoppingCriteria):
    """Reads the clocks after every token, and stops nothing."""

    def __init__(self) -> None:
        self.readings = [Seconds.now()]

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """The stopping-criterion form."""
        self.mark()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def mark(self) -> None:
        """One more token."""
        self.readings.append(Seconds.now())

    def run(self, tokens: int) -> Run:
        """Prefill and decode times, if `tokens` tokens came."""
        start, first, *_, last = self.readings
        if len(self.readings) != tokens + 1:
            raise RuntimeError(f"{len(self.readings) - 1} tokens came, expected {tokens}")
        return Run(first.since(start), last.since(first, tokens - 1))


#: Generates from a prompt, marking every token.
Method = Callable[[dict[str, Tensor], Stamps], Any]
#: What a contrast is made with for a prompt: the reference or references, and the weights of several.
Made = Callable[[dict[str, Tensor]], tuple[Any, tuple[float, ...] | None]]


def references(bank: CentroidBank, layer: int) -> dict[str, Made]:
    """Every reference beside TCCD's own, by name.

    Args:
        bank: with centroids of both modalities at the layer, and a vision mean.
        layer: where it erases.
    """
    withheld, mean, words = no_vision(), mean_vision(bank), text_centroid(bank, layer, ALPHA_INTERP)
    return {
        "no_vision": lambda inputs: (withheld, None),
        "mean_vision": lambda inputs: (mean, None),
        "blank_image": lambda inputs: (blank(inputs), None),
        "early_exit": lambda inputs: (early_exit(layer), None),
        "early_exit_low": lambda inputs: (early_exit("low"), None),
        "early_exit_high": lambda inputs: (early_exit("high"), None),
        "no_vision_mean_vision": lambda inputs: ([withheld, mean], (0.5, 0.5)),
        "no_vision_text_centroid": lambda inputs: ([withheld, words], (1.0, -0.5)),
        "vision_centroid": lambda inputs: (vision_centroid(bank, layer), None),
        "noised_image": lambda inputs: (noised_image(inputs), None),
        "prompt": lambda inputs: (OtherPrompt(inputs | {"input_ids": inputs["input_ids"].clone()}), None),
        "question_alone": lambda inputs: (OtherPrompt(question_alone(inputs)), None),
    }


def blank(inputs: Mapping[str, Tensor]) -> KeptImage:
    """A picture of zeros in each image's place, as `blank_image` makes one of a color."""
    rows = len(inputs["input_ids"])

    def encoded(numbers: Any) -> dict[str, Any]:
        each = len(inputs["pixel_values"]) // rows
        cut = {name: value[: len(numbers)] for name, value in inputs.items() if name != "pixel_values"}
        cut["input_ids"] = inputs["input_ids"][list(numbers)]
        return cut | {"pixel_values": torch.zeros_like(inputs["pixel_values"][: each * len(numbers)])}

    return KeptImage(encoded, [("zeros", tuple(inputs["image_grid_thw"][row].tolist())) for row in range(rows)])


def question_alone(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The prompts without their image."""
    ids = inputs["input_ids"]
    words = ids[:, int((ids[0] == IMAGE).nonzero()[-1]) + 1 :]
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def methods(model: Any, bank: CentroidBank, layer: int, tokens: int) -> tuple[dict[str, Method], dict[str, str]]:
    """What is compared, and what could not be: name -> method, name -> reason.

    Args:
        model: a `random_qwen`.
        bank: as for `references`.
        layer: where it erases.
        tokens: to generate.
    """
    settings: dict[str, Any] = {"alpha_cd": ALPHA_CD, "alpha_interp": ALPHA_INTERP}
    tccd = TCCD(model, bank, **settings)
    replace = centroid_erasure(bank, layer, ALPHA_INTERP).replace
    plausible = TCCD(model, bank, **settings, beta=BETA)
    gated = TCCD(model, bank, **settings, gate=GATE)

    def generate(inputs: dict[str, Tensor], stamps: Stamps, **more: Any) -> Any:
        return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, stopping_criteria=[stamps], **more)

    def by_processor(inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        return generate(inputs, stamps, logits_processor=[tccd.logits_processor()])

    def in_two_passes(inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        return two_pass(model, inputs, layer, replace, ALPHA_CD, tokens, stamps.mark)

    def contrasted(make: Made, inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        reference, weights = make(inputs)
        contrast = Contrast(model, reference, weights=weights, alpha_cd=ALPHA_CD)
        return generate(inputs, stamps, custom_generate=contrast)

    def grouped(inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        with grouped_heads():
            return generate(inputs, stamps)

    found: dict[str, Method] = {
        "plain": generate,
        "plain_grouped": grouped,
        "two_pass": in_two_passes,
        "tccd": partial(generate, custom_generate=tccd),
        "tccd_plausible": partial(generate, custom_generate=plausible),
        "tccd_gated": partial(generate, custom_generate=gated),
        "tccd_processor": by_processor,
    }
    found |= {name: partial(contrasted, make) for name, make in references(bank, layer).items()}
    if find_spec("mitigv") is None:
        return found, {"mitigv_vcd": "not installed; pip install --no-deps mitigv"}
    return found | {"mitigv_vcd": partial(mitigv_vcd, model, tokens)}, {}


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Plain decoding with a token's attention as a session runs it on a CPU, so that only the contrast differs."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
        if query.shape[2] > 1:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return grouped_attention(query, key, value, attention_mask, more.get("scaling")), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def mitigv_vcd(model: Any, tokens: int, inputs: dict[str, Tensor], stamps: Stamps) -> Any:
    """VCD (Leng et al., CVPR 2024) by the library mitigv, its public loader and its own defaults.

    Its processor is one that hands over the prompt as it is. It has no callback for tokens, so the method that
    chooses each is wrapped.
    """
    from mitigv import load_mitigator

    class Processor:
        eos_token_id = pad_token_id = None

        def __call__(self, **kwargs: Any) -> dict[str, Tensor]:
            return inputs

        def batch_decode(self, sequences: Tensor, **kwargs: Any) -> list[str]:
            return [str(row.tolist()) for row in sequences]

    vcd: Any = load_mitigator("vcd", model=model, processor=Processor())
    choose = vcd._sample_next

    def choose_and_mark(*args: Any) -> Any:
        token = choose(*args)
        stamps.mark()
        return token

    vcd._sample_next = choose_and_mark
    return vcd(None, "", max_new_tokens=tokens)
