"""The engine's hold on a model: what is changed while a session is on, and how it is undone.

Every change asks first whether the calling thread (or asyncio task) decodes under a session of this model;
if not, the model's own code runs as it was.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn

from tccd.decoder import Decoder, is_attention
from tccd.engine.attention import dispatch_attention


class Guest(Protocol):
    """What runs on an installed model: a `tccd.engine.session.Session`, a reader of embeddings."""

    decoder: Decoder
    is_open: bool
    yields: bool

    @property
    def is_idle(self) -> bool:
        """Whether the forward that runs is none of the session's business."""
        ...

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The whole model is about to run."""
        ...

    def end(self, output: Any) -> Any:
        """The whole model has run; returns its output, changed or not."""
        ...

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a decoder layer by its own forward."""
        ...

    def run_norm(self, forward: Callable[..., Any], hidden: Tensor) -> Tensor:
        """Run the final norm by its own forward."""
        ...

    def run_head(self, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """Run the head by its own forward."""
        ...

    def run_attention(
        self, index: int | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a layer's attention by its own forward.

        Args:
            index: the layer; None for an attention inside its attention.
            forward, args, kwargs: the attention's own.
        """
        ...

    def close(self) -> None:
        """Be done."""
        ...


#: The session that this thread (or asyncio task) decodes under.
current: ContextVar[Guest | None] = ContextVar("tccd_session", default=None)

_installed: weakref.WeakKeyDictionary[nn.Module, _Installation] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def install(decoder: Decoder) -> None:
    """Make the model able to run sessions; counted, so that several threads can share it."""
    with _lock:
        if decoder.model not in _installed:
            _installed[decoder.model] = _Installation(decoder)
        _installed[decoder.model].count += 1


def uninstall(decoder: Decoder) -> None:
    """Undo one `install`; the last one leaves the model as it was."""
    with _lock:
        installation = _installed[decoder.model]
        installation.count -= 1
        if installation.count == 0:
            installation.remove()
            del _installed[decoder.model]


@contextmanager
def running(guest: Guest) -> Iterator[None]:
    """Run a guest on its model in this thread; afterwards it is closed, and nothing of it is on the model.

    A processor may be dropped at any time: in another context than it was made in, or while another guest has
    taken its place. Only the guest whose turn it is gives the turn back.
    """
    install(guest.decoder)
    before = current.get()
    current.set(guest)
    try:
        yield
    finally:
        guest.close()
        if current.get() is guest:
            current.set(before if before is not None and before.is_open else None)
        uninstall(guest.decoder)


def is_installed(model: nn.Module) -> bool:
    """Whether anything of the engine is on the model."""
    return model in _installed


def session_of(model: nn.Module) -> Guest | None:
    """The session that the caller decodes this model under."""
    session = current.get()
    return session if session is not None and session.is_open and session.decoder.model is model else None


def _running_on(model: nn.Module | None) -> Guest | None:
    session = None if model is None else session_of(model)
    return None if session is None or session.is_idle else session


class _Installation:
    """The wrapped forwards of one model's decoder, and two hooks around the whole."""

    def __init__(self, decoder: Decoder) -> None:
        self.count = 0
        self._model = weakref.ref(decoder.model)
        self._undo: list[Callable[[], None]] = []
        for index, layer in enumerate(decoder.layers):
            self._wrap(layer, lambda s, f, a, k, i=index: s.run_layer(i, f, a, k))
            outermost = None
            for module in layer.modules():
                if module is not layer and is_attention(module):
                    outermost = outermost or module
                    at = index if module is outermost else None
                    self._wrap(module, lambda s, f, a, k, at=at: s.run_attention(at, f, a, k))
        self._wrap(decoder.norm, lambda s, f, a, k: s.run_norm(f, *a, **k))
        self._wrap(decoder.head, lambda s, f, a, k: s.run_head(f, *a, **k))
        self._undo.append(dispatch_attention(decoder))
        before = decoder.model.register_forward_pre_hook(_before_forward, with_kwargs=True)
        after = decoder.model.register_forward_hook(_after_forward)
        self._undo += [before.remove, after.remove]

    def _wrap(self, module: nn.Module, run: Callable[..., Any]) -> None:
        own = module.__dict__.get("forward")  # accelerate, for one, puts a forward of its own here
        original, of = module.forward, self._model

        def forward(*args: Any, **kwargs: Any) -> Any:
            session = _running_on(of())
            return original(*args, **kwargs) if session is None else run(session, original, args, kwargs)

        def undo() -> None:
            if own is None:
                del module.forward
            else:
                module.forward = own

        module.forward = forward
        self._undo.append(undo)

    def remove(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


def _before_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    session = session_of(model)
    if session is not None:
        session.begin(args, kwargs)


def _after_forward(model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    session = _running_on(model)
    return None if session is None else session.end(output)
