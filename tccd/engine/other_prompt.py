"""Other words: the same answer after another prompt (instruction contrast, classifier-free guidance)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tccd.decoder import Decoder
from tccd.engine.arguments import cache_of
from tccd.engine.embeddings import beside
from tccd.engine.reference import Reference
from tccd.engine.shadow import Shadow, ShadowLayer, ShadowPart
from tccd.engine.streams import kept_by
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.modality import ModalityMap


@dataclass(frozen=True, eq=False)
class OtherPrompt(Reference):
    """The same answer after other words: another instruction or none, with the same image, another one or none.

    Columns of two prompts don't correspond. So a contrast acts at the prompt's last column and at every generated
    token, on rows without an image too.

    Attributes:
        inputs: what the model takes for the other prompts, one a row, by name: the processor's output, padded on
            the left.
        batch: set by `prepare`: what it runs on.

    Raises:
        ConfigError: the other prompts are padded on the right; they are another number than the prompts; or a
            forward goes on with the last prompt without its cache.
        UnsupportedModelError: there is no cache, or where the prompt ends is not known.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    batch: _Batch | None = field(default=None, repr=False)
    needs_image = False
    needs_logits = True
    _last: WeakKeyDictionary[Any, Tensor] = field(default_factory=WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        mask = self.inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ConfigError(
                "the other prompts are padded on the right, where their next tokens have to stand; pad them on "
                "the left: processor(..., padding_side='left')"
            )

    def prepare(self, decoder: Decoder, given: Mapping[str, Any]) -> OtherPrompt:
        """With a shadow for the batch."""
        if given.get("use_cache") is False:
            raise UnsupportedModelError(
                "use_cache=False: each forward then holds prompt and answer in one, so that the answer can't be "
                "put behind the other prompt; use a cache"
            )
        ids, mask = given["input_ids"], given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == ids.shape and not bool(mask[:, -1].all()):
            raise ConfigError(
                "the prompts are padded on the right, where their next tokens have to stand; pad them on the left"
            )
        inputs = beside(ids, self.inputs, decoder.model)
        shadow = Shadow(decoder.model, inputs, cache_of(given), _copies(inputs["input_ids"], ids))
        takes = "logits_to_keep" in inspect.signature(decoder.model.forward).parameters
        keep = given.get("logits_to_keep", 0)
        return replace(self, batch=_Batch(ids, shadow, takes and isinstance(keep, int) and keep < 2))

    def begin(self, owner: Any, number: int, modalities: ModalityMap) -> ShadowPart:
        """As `Reference.begin`; where the forward drafts tokens already, they are not the prompt's."""
        assert self.batch is not None
        ids, width = self.batch.ids, owner.prompt_length
        if width is None and not self.batch.is_prompt:
            raise UnsupportedModelError(
                "the first forward may hold drafted tokens behind the prompt (prompt lookup, an assistant), which "
                "belong behind the other prompt too; use custom_generate=contrast, which tells them apart"
            )
        width = ids.shape[1] if width is None else width
        last = self._last.get(owner)
        if last is not None and last.shape[1] < width and torch.equal(last, ids[:, : last.shape[1]]):
            raise UnsupportedModelError(
                f"a forward without past_key_values goes on from the last one's {last.shape[1]} tokens, but the "
                "other prompt stays as it is; pass the cache, or make a reference for the longer prompt"
            )
        self._last[owner] = ids[:, :width]
        return ShadowPart(ShadowLayer(owner, number, width, self.batch.shadow), ids[:, width:], True)

    def resume(self, owner: object, number: int, cache: Cache, past: int, ids: Tensor) -> ShadowPart:
        """As `Reference.resume`."""
        (rider,) = kept_by(owner, number, cache, past)
        if rider.shadow.rows != ids.shape[0]:
            raise UnsupportedModelError(
                f"past_key_values was filled for {rider.shadow.rows} rows, this forward has {ids.shape[0]}"
            )
        return ShadowPart(rider, ids)


@dataclass(frozen=True)
class _Batch:
    """The prompts that are decoded, and a shadow for them.

    Attributes:
        ids: of the clean stream's first forward, shape (batch, sequence).
        shadow: not run yet.
        is_prompt: whether the call can't hold more than prompts: no next token is asked of an earlier column.
    """

    ids: Tensor
    shadow: Shadow
    is_prompt: bool


def _copies(others: Tensor, ids: Tensor) -> int:
    """How often each of the other prompts is needed: `generate` repeats a prompt for beams, side by side."""
    rows = others.shape[0]
    times, left = divmod(ids.shape[0], rows)
    if left or not times or not bool((ids.reshape(rows, times, -1) == ids[::times, None]).all()):
        raise ConfigError(
            f"there are {rows} other prompts for {ids.shape[0]} prompts; expected one for each, in their order"
        )
    return times
