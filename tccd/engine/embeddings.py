"""What a model makes of a picture before its first layer and between layers, without running the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from typing import Any

import torch
from torch import Tensor

from tccd.decoder import Decoder, replace_first
from tccd.engine.installation import running
from tccd.errors import ConfigError


class _Done(Exception):
    """Ends the forward where the layers end."""


class _Reader:
    """Runs on an installed model in a session's place: every layer hands on what it was given.

    The first layer does run, to show whether layers return a tensor or a tuple.
    """

    yields = False
    is_idle = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.is_open = True
        self.embeddings: Tensor | None = None
        self.additions: dict[int, Tensor] = {}
        self._output: Any = None
        self._before: Tensor | None = None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing to lay out."""

    def end(self, output: Any) -> Any:
        """The model's output as it is."""
        return output

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Note what came in; hand it on."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._before is None:
            self.embeddings, self._output = hidden.clone(), forward(*args, **kwargs)
        else:
            added = hidden - self._before
            if bool(added.any()):
                self.additions[index] = added
        self._before = hidden.clone()  # the model may add in place
        return replace_first(self._output, hidden)

    def run_norm(self, forward: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The layers have run."""
        raise _Done

    def run_head(self, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """Not reached."""
        return forward(states)

    def run_attention(
        self, index: int | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As it is."""
        return forward(*args, **kwargs)

    def close(self) -> None:
        """Be done."""
        self.is_open = False


def read_embeddings(decoder: Decoder, inputs: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    """What a model's layers would be given for a batch of prompts.

    Args:
        decoder: the model's parts.
        inputs: what the model takes, by name, pictures included.

    Returns:
        The first layer's input, shape (batch, sequence, hidden), and what the model adds before a layer, by layer,
        of the same shape.
    """
    reader = _Reader(decoder)

    def read() -> None:
        with running(reader), torch.no_grad(), suppress(_Done):
            decoder.model(**inputs, use_cache=False)

    Context().run(read)  # an empty context: no session is on, and nobody records outputs
    assert reader.embeddings is not None
    return reader.embeddings, reader.additions


def beside(ids: Tensor, inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """What a processor gives, on the device of a call and in the model's precision.

    Args:
        ids: token ids of the call. The weights may be elsewhere (offloaded), and say nothing of the device.
        inputs: by name; tensors of floating numbers get the model's dtype.
        model: a transformers model.
    """

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(ids.device, model.dtype if value.is_floating_point() else None)

    return {name: moved(value) for name, value in inputs.items()}


def repeated(given: Tensor, ids: Tensor) -> int:
    """How often each row of `given` comes in `ids`, one after the other, as `generate` repeats rows for beams.

    Args:
        given, ids: token ids, shape (rows, sequence) and (rows * times, sequence).

    Raises:
        ConfigError: they are other prompts.
    """
    times, left = divmod(ids.shape[0], given.shape[0])
    if left or not torch.equal(given.repeat_interleave(times, 0), ids):
        raise ConfigError(
            f"the reference's inputs hold prompts of shape {tuple(given.shape)}, which are not the prompts of "
            f"shape {tuple(ids.shape)} that are decoded; encode the same prompts with other pictures of the same "
            "size"
        )
    return times
