"""The doors through which a model generates under a session: `custom_generate=` and a `with` block."""

from __future__ import annotations

import inspect
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING, GenerationMixin

from tccd.errors import ConfigError, UnsupportedModelError

_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)


class Opening(Protocol):
    """What a door opens: a session that is on its model for as long as its context lasts."""

    def active(self) -> AbstractContextManager[None]:
        """On the model in the calling thread; afterwards nothing is left on it."""
        ...


class Door(ABC):
    """What `generate` takes as `custom_generate`, and what `with` opens for every call of the model.

    Args:
        model: the model that it is made for.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._local = threading.local()

    @abstractmethod
    def session(self, prompt_length: int | None = None) -> Opening:
        """A fresh session.

        Args:
            prompt_length: columns of the prompt, where they are known: a first forward may hold drafted tokens
                behind them.
        """

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
        """The `custom_generate` door; transformers' `generate` calls it with everything prepared.

        Raises:
            ConfigError: made for another model.
            UnsupportedModelError: a way of generating that no session can follow; says which.
        """
        self._check_same(model)
        dropped, name = _dropped_by_generate(model), type(self).__name__
        mode = generation_config.get_generation_mode(dropped.get("assistant_model"))
        if mode not in _MODES:
            raise UnsupportedModelError(
                f"generation mode {mode.value!r}; {name} decodes {', '.join(m.value for m in _MODES)}"
            )
        if generation_config.prefill_chunk_size is not None:
            raise UnsupportedModelError(f"prefill_chunk_size splits the prompt; {name} needs it in one forward")
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

    def __enter__(self) -> Self:
        """Put every call of the model in this thread under a session until the block ends."""
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

    def _stack(self) -> list[AbstractContextManager[Any]]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    def _check_same(self, model: Any) -> None:
        if model is self.model:
            return
        ours, name = type(self.model).__name__, type(self).__name__
        if any(model is part for part in self.model.modules()):
            raise UnsupportedModelError(
                f"{ours} hands generation over to its {type(model).__name__}, which is given the image without "
                f"token ids; {name} reads the image's place from token ids, so it can't follow"
            )
        raise ConfigError(
            f"this {name} was made for another {ours} than the one that generates; make one for each model"
        )


def _dropped_by_generate(model: Any) -> dict[str, Any]:
    """What `generate` was given and does not hand to a `custom_generate` callable.

    transformers 5.16 to 5.24 pass such a callable neither the streamer nor the assistant model, and no other
    place holds them than the caller's frame. Found there or nowhere: another caller means a direct call.
    """
    frame = sys._getframe(2)
    if frame.f_code is not inspect.unwrap(GenerationMixin.generate).__code__:
        return {}
    names = ("streamer", "assistant_model", "synced_gpus")
    found = {name: frame.f_locals.get(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
