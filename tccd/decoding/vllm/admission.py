"""Rendered requests: those that can't be contrasted, or never fit, are refused before the engine gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tccd.decoding.vllm.pairs import TOKENS, without_vision
from tccd.decoding.vllm.settings import NO_IMAGE, Settings, tail_start

VISION = ("image", "video", "vision_chunk")


def check(request: Any, found: Settings, vision_ids: tuple[int, ...], room: Room) -> None:
    """Make sure that a contrast means something for a request, and that it and its shadow can be served.

    Args:
        request: vLLM's `EngineCoreRequest`.
        found: what it asks for.
        vision_ids: tokens that stand for images.
        room: what the engine can hold.

    Raises:
        VLLMValidationError: no image in the prompt, no room, or a kind of request that was not tested.
    """
    from vllm.exceptions import VLLMValidationError

    modalities = [feature.modality for feature in request.mm_features or ()]
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise VLLMValidationError("TCCD was not tested with prompt embeddings; send text and images")
    if request.resumable:
        raise VLLMValidationError("TCCD was not tested with streamed input; send the whole prompt")
    if any(modality not in VISION for modality in modalities):
        raise VLLMValidationError(f"TCCD was not tested with {', '.join(sorted(set(modalities) - set(VISION)))}")
    ids = request.prompt_token_ids
    if found.reference == "prompt":
        other = len(request.sampling_params.extra_args[TOKENS]["tokens"])
    elif not modalities or tail_start(ids, vision_ids) is None:
        raise VLLMValidationError(NO_IMAGE)
    elif found.reference == "blank-image" and set(modalities) != {"image"}:
        raise VLLMValidationError("tccd_reference 'blank-image' takes images; this prompt has a video")
    elif found.reference == "no-vision":
        other = len(without_vision(ids, vision_ids, request.mm_features))
    else:
        other = len(ids)
    said = room.lacks(len(ids), other, request.sampling_params.max_tokens)
    if said:
        raise VLLMValidationError(said)


@dataclass(frozen=True)
class Room:
    """What an engine can hold at once.

    Attributes:
        context: tokens of one sequence, `max_model_len`.
        blocks: of the KV cache; None before the engine has said.
        block: tokens in one.
    """

    context: int
    blocks: int | None
    block: int

    def lacks(self, prompt: int, other: int, answer: int) -> str | None:
        """What is wrong with a request of so many tokens, its shadow of so many, and their answer; else None."""
        if min(prompt, other) < 2:
            return f"TCCD needs two tokens of prompt; this one has {prompt}, its reference {other}"
        if other + answer > self.context:
            return (
                f"the reference's prompt has {other} tokens, and max_tokens is {answer}: more than the "
                f"{self.context} of max_model_len. Shorten one of them"
            )
        needed = sum(-(-(tokens + answer) // self.block) for tokens in (prompt, other))
        if self.blocks is not None and needed > self.blocks - 1:  # vLLM keeps one for itself
            return (
                f"this request and its reference may take {needed} blocks of the KV cache, of {self.blocks - 1}: "
                f"lower max_tokens, which is {answer}, or give the server more memory for the cache"
            )
        return None
