"""How our code is put into vLLM's: one guarded wrapper, and whether this process has all of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_installed = False


def wrap(owner: Any, name: str, around: Callable) -> None:
    """Replace `owner.name` by `around(original, *args, **kwargs)`; a second call changes nothing.

    Args:
        owner: a class or a module of vLLM.
        name: a function of it.
        around: gets what was there, then the call's arguments; may be a coroutine function.
    """
    original = getattr(owner, name)
    if getattr(original, "tccd", False):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper.tccd = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


def installed() -> bool:
    """Whether this process decodes with TCCD: its plugin was loaded with a bank, to the end."""
    return _installed


def complete() -> None:
    """Say that everything is in its place."""
    global _installed
    _installed = True
