"""What is set on single objects of vLLM: a loaded model, the context of a forward, a configuration, a request.

Unlike the classes that `joints.wrap` changes for the life of a process, these come and go. An attribute of the
object itself hides its class's method, and is gone with the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tccd.decoding.vllm.joints import NAMED
from tccd.errors import UnsupportedModelError


def checked(name: str, module: Any) -> Callable[..., Any]:
    """A loaded module's method, if it has the shape of its joint.

    Raises:
        UnsupportedModelError: it has not; names both shapes.
    """
    joint = NAMED[name]
    function = getattr(module, joint.attribute, None)
    said = "is not there" if function is None else joint.misfit(function)
    if said:
        raise UnsupportedModelError(
            f"{type(module).__name__}.{joint.attribute} (joint {name!r}) {said}. Start vLLM without TCCD_BANK to "
            "serve this model plainly"
        )
    assert function is not None
    return function


def put(name: str, module: Any, function: Callable[..., Any]) -> None:
    """Let a loaded module's method be another one from now on; its class stays as it is."""
    setattr(module, NAMED[name].attribute, function)


@contextmanager
def forwards(of: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules' `forward` be others for as long as the block runs.

    Args:
        of: (module, function).
    """
    own = [(module, vars(module).get("forward")) for module, _ in of]
    for module, function in of:
        module.forward = function
    try:
        yield
    finally:
        for module, before in own:
            if before is None:
                del module.forward
            else:
                module.forward = before


def run_uncompiled(context: Any) -> None:
    """Let the forward of a context call the model's modules one by one.

    The compiled model and its CUDA graphs have no place for erased rows.
    """
    context.skip_compiled = True
    context.cudagraph_runtime_mode = type(context.cudagraph_runtime_mode).NONE


def hand_down(config: Any, key: str, value: Any) -> None:
    """Write into an engine's configuration something that vLLM hands to each of its processes."""
    config.additional_config = {**(config.additional_config or {}), key: value}


def note(thing: Any, value: Any) -> None:
    """Remember something of ours on an object of vLLM's, for as long as that lives."""
    thing.tccd = value


def noted(thing: Any, otherwise: Any = None) -> Any:
    """What `note` remembered."""
    return getattr(thing, "tccd", otherwise)
