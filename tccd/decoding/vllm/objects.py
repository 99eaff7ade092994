"""What is set on single objects of vLLM: a loaded model, the context of a forward, a configuration, a request.

Unlike the classes that `joints.wrap` changes for the life of a process, these come and go. An attribute of the
object itself hides its class's method, and is gone with the object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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


def around(name: str, owner: Any, function: Callable[..., Any]) -> None:
    """Put a function around one of an object's own, if that has the shape of its joint; its class stays as it is.

    Args:
        name: of the joint.
        owner: the object.
        function: gets what was there, then the call's arguments.

    Raises:
        UnsupportedModelError: it has not; names both shapes.
    """
    setattr(owner, NAMED[name].attribute, functools.partial(function, checked(name, owner)))


def count_less(stats: Any, running: int, waiting: int) -> None:
    """Take sequences that nobody asked for out of the scheduler's figures."""
    stats.num_running_reqs -= running
    fewer = min(waiting, stats.num_waiting_reqs)
    stats.num_waiting_reqs -= fewer
    stats.num_skipped_waiting_reqs -= min(waiting - fewer, stats.num_skipped_waiting_reqs)


def keep_images(new: Any, features: list[Any]) -> None:
    """Let a worker have a request's images, though all of their tokens are in the cache as it comes.

    vLLM 0.32 leaves their pixels out. Where the request is preempted and those blocks are lost, Model Runner V1
    can't compute them again, and the engine ends. A pair's request always finds its image there: its shadow's.
    """
    new.mm_features = features


def run_by(config: Any, scheduler: str, worker: str) -> None:
    """Let an engine take our scheduler and worker."""
    config.scheduler_config.scheduler_cls = scheduler
    config.parallel_config.worker_cls = worker


def hand_down(config: Any, key: str, value: Any) -> None:
    """Write into an engine's configuration something that vLLM hands to each of its processes."""
    config.additional_config = {**(config.additional_config or {}), key: value}


def give(params: Any, key: str, value: Any) -> None:
    """Add to one request's extra arguments, which vLLM hands through all its processes."""
    params.extra_args = {**(params.extra_args or {}), key: value}


def note(thing: Any, value: Any) -> None:
    """Remember something of ours on an object of vLLM's, for as long as that lives."""
    thing.tccd = value


def noted(thing: Any, otherwise: Any = None) -> Any:
    """What `note` remembered."""
    return getattr(thing, "tccd", otherwise)
