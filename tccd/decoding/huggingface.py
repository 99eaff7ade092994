"""TCCD in transformers: three doors to one engine."""

from __future__ import annotations

import inspect
import sys
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING, GenerationMixin

from tccd.centroids.bank import CentroidBank
from tccd.centroids.replacement import Centroids
from tccd.decoder import find_decoder
from tccd.decoding.config import TCCDConfig
from tccd.decoding.processor import TCCDLogitsProcessor, WatchingSession
from tccd.decoding.refusals import check_model
from tccd.decoding.session import Contrasted, TCCDSession
from tccd.decoding.streams import Erasure
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.modality import Modality

_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)


class TCCD:
    """Text-centroid contrastive decoding for a transformers vision-language model.

    Every token is drawn from `clean + alpha_cd * (clean - erased)`, where the erased stream's text tail was
    replaced by its nearest centroids at one layer (arXiv 2604.14363). The erased stream runs inside the clean
    one's forward (see `tccd.decoding.twin`). A row without an image is decoded plainly.

    Three doors:

    - `model.generate(**inputs, custom_generate=tccd)`: greedy, sampling, beams, assisted and prompt-lookup
      decoding, streamers included; `scores` and `logits` are the combined ones.
    - `with tccd: ...`: every call of the model in this thread, by whatever calls it (a pipeline).
    - `model.generate(**inputs, logits_processor=[tccd.logits_processor()])`: where only processors are taken.

    Args:
        model: a loaded model with a language-model head, in eval mode.
        bank: centroids fitted for this model, with a text entry at the layer.
        alpha_cd, alpha_interp, layer, beta, gate, gate_threshold, gate_ramp, tokens: see `TCCDConfig`.
        config: all of them at once, instead.

    Raises:
        ConfigError: a setting is out of range, or the bank's layer is ambiguous.
        BankMismatchError: the bank was fitted for another model, or has no such layer.
        UnsupportedModelError: the engine is not exact for this model.

    Example:
        >>> from PIL import Image
        >>> from tccd.inputs import encode
        >>> tccd = TCCD(model, bank, alpha_cd=1.0, alpha_interp=0.4)
        >>> inputs = encode(processor, [[Image.new("RGB", (64, 64))]], ["what shape is in the image?"])
        >>> tokens = model.generate(**inputs, custom_generate=tccd, max_new_tokens=4)
        >>> with tccd:
        ...     same = model.generate(**inputs, max_new_tokens=4)
        >>> bool((tokens == same).all())
        True
    """

    def __init__(
        self,
        model: Any,
        bank: CentroidBank,
        alpha_cd: float = 1.0,
        alpha_interp: float = 0.4,
        layer: int | None = None,
        beta: float = 0.0,
        gate: str | None = None,
        gate_threshold: float = 0.5,
        gate_ramp: float = 0.0,
        tokens: str = "all",
        *,
        config: TCCDConfig | None = None,
    ) -> None:
        given = TCCDConfig(alpha_cd, alpha_interp, layer, beta, gate, gate_threshold, gate_ramp, tokens)
        if config is not None and given != TCCDConfig():
            raise ConfigError("settings were given both one by one and as config; give them once")
        self.config = config or given
        self.model = model
        self.bank = bank
        bank.check(model)
        self.decoder = find_decoder(model)
        self.layer = text_layer(bank, self.config.layer)
        self.decoder.check_layer(self.layer, last_allowed=False)
        self.erasure = centroid_erasure(bank, self.layer, self.config.alpha_interp)
        check_model(self.decoder)
        self._local = threading.local()

    @property
    def trace(self) -> list[Contrasted]:
        """Where contrast acted in this thread's last generation, one entry a forward."""
        session = getattr(self._local, "last", None)
        return [] if session is None else session.trace

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """The `custom_generate` door; transformers' `generate` calls it with everything prepared."""
        self._check_same(model)
        dropped = _dropped_by_generate(model)
        mode = generation_config.get_generation_mode(dropped.get("assistant_model"))
        if mode not in _MODES:
            raise UnsupportedModelError(
                f"generation mode {mode.value!r}; TCCD decodes {', '.join(m.value for m in _MODES)}"
            )
        if generation_config.prefill_chunk_size is not None:
            raise UnsupportedModelError("prefill_chunk_size splits the prompt; TCCD needs it in one forward")
        if getattr(generation_config, "assistant_early_exit", None) is not None:
            raise UnsupportedModelError("assistant_early_exit drafts from inside the model's own layers")
        generation_config.disable_compile = True
        if mode == GenerationMode.ASSISTED_GENERATION:
            model_kwargs |= dropped | {"inputs_tensor": inputs_tensor}
        elif dropped.get("streamer") is not None:
            if mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE):
                raise UnsupportedModelError("a streamer can't be used with beam search; set num_beams=1")
            model_kwargs["streamer"] = dropped["streamer"]
        decode = getattr(type(model), GENERATION_MODES_MAPPING[mode])
        with self.session(prompt_length=input_ids.shape[1]).active():
            return decode(
                model,
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                **model_kwargs,
            )

    def session(self, prompt_length: int | None = None) -> TCCDSession:
        """A fresh decoding session; `trace` shows the last one of this thread."""
        session = TCCDSession(self.decoder, self.erasure, self.config, prompt_length)
        self._local.last = session
        return session

    def __enter__(self) -> TCCD:
        """Contrast every call of the model in this thread until the block ends."""
        stack = self._stack()
        context = self.session().active()
        context.__enter__()
        stack.append(context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was."""
        self._stack().pop().__exit__(kind, error, trace)

    def _stack(self) -> list[AbstractContextManager]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    def logits_processor(self) -> TCCDLogitsProcessor:
        """The processor door: a new processor, for one `generate` call in this thread.

        The model is watched from now until the processor is dropped or closed, so create it in the call:
        `model.generate(**inputs, logits_processor=[tccd.logits_processor()])`. Transformers runs it after its
        own penalties, which therefore see the clean logits; with `custom_generate` they see the combined.
        """
        session = WatchingSession(self.decoder, self.erasure, self.config)
        self._local.last = session
        return TCCDLogitsProcessor(session)

    def _check_same(self, model: Any) -> None:
        if model is not self.model:
            raise ConfigError(
                f"this TCCD was made for another {type(self.model).__name__} than the one that generates; "
                "make one for each model"
            )


def text_layer(bank: CentroidBank, layer: int | None) -> int:
    """The layer whose text centroids are used: the one asked for, or the bank's only one.

    Raises:
        ConfigError: none was asked for and the bank has several, or none.
        BankMismatchError: the bank has no text entry at the layer.
    """
    if layer is None:
        found = bank.layers("text")
        if len(found) != 1:
            raise ConfigError(f"the bank holds text centroids of layers {list(found)}; say layer=...")
        return found[0]
    bank.centroids("text", layer)
    return layer


def centroid_erasure(
    bank: CentroidBank, layer: int, alpha_interp: float, modality: Modality = "text", segment: str | None = None
) -> Erasure:
    """Erase a modality by its bank's centroids at a layer.

    Raises:
        BankMismatchError: the bank has no such entry.
    """
    centroids = Centroids(bank.centroids(modality, layer))
    on: dict[torch.device, Centroids] = {}

    def replace(hidden: Tensor) -> Tensor:
        if hidden.device not in on:
            on[hidden.device] = centroids.to(hidden.device)
        return on[hidden.device].replace(hidden, alpha_interp)

    return Erasure(layer=layer, replace=replace, modality=modality, segment=segment)


def _dropped_by_generate(model: Any) -> dict[str, Any]:
    """What `generate` was given and does not hand to a `custom_generate` callable.

    transformers 5.16 to 5.19 pass such a callable neither the streamer nor the assistant model, and no other
    place holds them than the caller's frame. Found there or nowhere: another caller means a direct call.
    """
    frame = sys._getframe(2)
    if frame.f_code is not inspect.unwrap(GenerationMixin.generate).__code__:
        return {}
    names = ("streamer", "assistant_model", "synced_gpus")
    found = {name: frame.f_locals.get(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
