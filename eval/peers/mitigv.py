"""The library mitigv 0.1.7 as an external check: its own code, its own defaults.

`pip install --no-deps mitigv`; without it there is nothing here. Its scores are taken where it chooses a token,
and what it contrasts with where it calls the model. Its PAI finds the image of LLaVA alone, and needs a model
with eager attention: it adds the mask, which other kinds of attention leave out or keep as true and false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from probes.asking.asked import Asked
from tccd.inputs import encode

Run = Callable[[Asked], list[Tensor]]


def mitigv_groups(model: Any, processor: Any) -> list[tuple[str, tuple[str, ...], Run]]:
    """Its VCD, and where it can its PAI: name, streams and function of each group."""
    if find_spec("mitigv") is None:
        return []
    found: list[tuple[str, tuple[str, ...], Run]] = [("mitigv-vcd", ("mitigv-vcd", "mitigv-noised"), vcd)]
    if model.config.model_type == "llava":
        found.append(("mitigv-pai", ("mitigv-pai",), pai))
    return found


class _Processor:
    """Hands mitigv the batch as the harness encodes it; without its images where it asks for none."""

    eos_token_id = pad_token_id = None

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def __call__(self, *, images: Any = None, **kwargs: Any) -> dict[str, Any]:
        """As mitigv calls it."""
        if images is not None:
            return self.asked.inputs
        prompts = [sample.prompt for sample in self.asked.samples]
        return dict(encode(self.asked.processor, [[]] * len(prompts), prompts))

    def batch_decode(self, sequences: Tensor, **kwargs: Any) -> list[str]:
        """Not looked at."""
        return [""] * len(sequences)


def _ask(asked: Asked, name: str) -> tuple[Tensor, list[Tensor]]:
    """Its scores of the next token, and the logits of each of its forwards."""
    from mitigv import build_mitigator, load_mitigator

    # Its loader wraps LLaVA in an adapter, behind which its PAI finds no layers under transformers 5.19.
    load: Any = build_mitigator if name == "pai" else load_mitigator
    mitigator = load(name, model=asked.model, processor=_Processor(asked), max_new_tokens=1, seed=0)
    scores: list[Tensor] = []
    forwards: list[Tensor] = []
    choose, forward = mitigator._sample_next, mitigator._forward

    def noting_choose(logits: Tensor, *args: Any) -> Any:
        scores.append(logits)
        return choose(logits, *args)

    def noting_forward(*args: Any) -> Any:
        logits, past = forward(*args)
        forwards.append(logits)
        return logits, past

    mitigator._sample_next, mitigator._forward = noting_choose, noting_forward
    mitigator(asked.images, [sample.prompt for sample in asked.samples])
    return scores[0], forwards


def vcd(asked: Asked) -> list[Tensor]:
    """Its VCD's scores at its defaults, and the logits that it contrasts with."""
    scores, (_, noised) = _ask(asked, "vcd")
    return [scores, noised]


def pai(asked: Asked) -> list[Tensor]:
    """Its PAI's scores at its defaults."""
    with _eager(asked.model):
        return [_ask(asked, "pai")[0]]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
