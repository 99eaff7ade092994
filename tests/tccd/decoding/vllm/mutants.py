"""Guards of the scheduler, each taken away: some workload of `fuzz` needs each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _mark(module: Any) -> None:
    module.pairs.mark = lambda found, loaded, moved: "same"


def _late_mark(module: Any) -> None:
    def call(self: Any, request: Any) -> list[bytes]:
        self._moved += self._block
        try:
            return hashed(self, request)
        finally:
            self._moved -= self._block

    hashed = module.pairs.MovedHasher.__call__
    module.pairs.MovedHasher.__call__ = call


def _method(name: str, function: Callable[..., Any]) -> Callable[[Any], None]:
    def put(module: Any) -> None:
        setattr(module.scheduler.PairScheduler, name, function)

    return put


def _room_unreserved(self: Any, pair: Any) -> bool:
    from tccd.decoding.vllm.scheduler import left

    return left(pair.clean) == 1


def _admit(module: Any) -> None:
    original = module.scheduler.PairScheduler._reserve_prefill_lookahead

    def admitted(self: Any, request: Any, computed: int, count: int) -> int:
        waits = request.status != module.RequestStatus.RUNNING
        return count if waits else original(self, request, computed, count)

    module.scheduler.PairScheduler._reserve_prefill_lookahead = admitted


def _chunk(module: Any) -> None:
    original = module.scheduler.PairScheduler._reserve_prefill_lookahead

    def whole(self: Any, request: Any, computed: int, count: int) -> int:
        found = original(self, request, computed, count)
        return count if found == count - 1 and request.status == module.RequestStatus.RUNNING else found

    module.scheduler.PairScheduler._reserve_prefill_lookahead = whole


def _hit(module: Any) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    module.scheduler.PairScheduler._get_local_prefix_cache_hit = Scheduler._get_local_prefix_cache_hit


def _room_without(text: str, instead: str) -> Callable[[Any], None]:
    """`_room` with one line of its source changed."""

    def put(module: Any) -> None:
        import inspect
        import textwrap

        source = textwrap.dedent(inspect.getsource(module.scheduler.PairScheduler._room))
        assert text in source
        space = dict(vars(module.scheduler))
        exec(source.replace(text, instead), space)
        module.scheduler.PairScheduler._room = space["_room"]

    return put


#: What is wrong without a guard -> how it is taken away.
MUTANTS: dict[str, Callable[[Any], None]] = {
    "blocks of moved states hash alike": _mark,
    "the first block of moved states hashes as a plain one": _late_mark,
    "no room is made for two": _method("_room", _room_unreserved),
    "a step's last token goes to one of a pair": _room_without("self._used < 2", "self._used < 1"),
    "room is made for one": _room_without("self._need(clean) + ", ""),
    "the last position of the context": _room_without("if max(", "if 0 * max("),
    "pairs stand apart": _method("_adjacent", lambda self: None),
    "two pairs may be half in": _method("_half", lambda self, pair: False),
    "half a pair waits behind those that do not fit": _method("_holder_first", lambda self: None),
    "a hit may leave one token": _hit,
    "admission runs a last row": _admit,
    "a chunk runs a last row": _chunk,
    "images of covered prompts are left out": _method("_keep_images", lambda self, output: None),
    "nothing is let go of": _method("_settle", lambda self, pair: None),
}
