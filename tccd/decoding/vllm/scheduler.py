"""The scheduler that keeps a contrasted request and its shadow in step: vLLM's own, with hooks of it overridden.

A sequence's *last row* is the one that computes its last known token: the row that the next token is sampled from.
The one invariant: **a step runs the last rows of both sequences of a pair, or of neither.** So their logits meet
in one step, and one token is given to both. All else (chunked prefill, prefix cache, preemption) is vLLM's.

- A pair is born in `add_request`: the shadow is queued before its request.
- Admission, and every step but the last of a prefill, leave the last token for later.
- In `running` a shadow stands right before its request. When its turn comes and both have one token left, room is
  made for both; else neither runs its last row.
- The request is admitted once the prefix that it shares with its shadow is computed, so it is computed once.
- Both end together; what the shadow puts out is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from tccd.decoding.vllm import banks, objects, promise
from tccd.decoding.vllm.pairs import Pair, make
from tccd.decoding.vllm.plugin import check
from tccd.decoding.vllm.refusals import vision_ids
from tccd.decoding.vllm.settings import settings
from tccd.errors import ConfigError

logger = init_logger("vllm.plugins.tccd")
#: Steps that run nothing, with sequences waiting, before a pair fails to make room.
PATIENCE = 8


class PairScheduler(Scheduler):
    """vLLM's scheduler, with pairs in step.

    Attributes:
        pairs: by the id of either of the two.
        failed: requests that end with an error, and why.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        promise.check(vllm_config)
        check(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        self.pairs: dict[str, Pair] = {}
        self.failed: dict[str, str] = {}
        self._vision_ids = vision_ids(vllm_config)
        self._granted: dict[str, int] = {}  # tokens of each request in the step that is being made
        self._last: set[str] = set()  # sequences whose last row is in that step
        self._used = self._idle = 0
        self._preempted = False
        objects.around("slots", self.kv_cache_manager, self._allocate_slots)
        objects.around("cache counts", self.kv_cache_manager, self._record_prefix_cache_stats)

    # Coming and going

    def add_request(self, request: Any) -> None:
        """A contrasted request comes with its shadow, queued before it."""
        params = request.sampling_params
        if params is None or request.request_id in self.requests:
            return super().add_request(request)
        try:
            found = settings(params.extra_args, banks.loaded())
            pair = None if found is None else self._pair(request, found)
        except Exception as error:  # the engine lives on, whatever is wrong with one request
            self._fail(request.request_id, f"{type(error).__name__}: {error}")
            pair = None
        if pair is not None:
            self.pairs[request.request_id] = self.pairs[pair.shadow.request_id] = pair
            super().add_request(pair.shadow)
        super().add_request(request)

    def _pair(self, request: Any, found: Any) -> Pair:
        pair = make(request, found, banks.loaded(), self._vision_ids, self.hash_block_size)
        longest = pair.shadow.num_tokens + request.max_tokens
        if longest > self.max_model_len:
            raise ConfigError(f"the reference may reach {longest} tokens, of {self.max_model_len}")
        return pair

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[Any]:
        """Both sequences of a pair end; only the request is said to have ended."""
        if not self.pairs:
            return super().finish_requests(request_ids, finished_status)
        if request_ids is None:
            request_ids = list(self.requests)
        names = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        pairs = [self.pairs[name] for name in names if name in self.pairs]
        both = {sequence.request_id for pair in pairs for sequence in pair.both}
        done = super().finish_requests({*names, *both}, finished_status)
        shadows = {pair.shadow.request_id for pair in pairs}
        for name in both:
            self.pairs.pop(name, None)
        return [request for request in done if request.request_id not in shadows]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Both get the same token; a pair that is out of step ends with an error."""
        if not self.pairs and not self.failed:
            return super().update_from_output(scheduler_output, model_runner_output)
        pairs = list({id(pair): pair for pair in self.pairs.values()}.values())
        shadows = {pair.shadow.request_id for pair in pairs}
        ended = [self.requests[name] for name in self.failed if name in self.requests]
        if ended:
            ended = self.finish_requests([request.request_id for request in ended], RequestStatus.FINISHED_ERROR)
        self.failed.clear()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for held in outputs.values():
            held.outputs[:] = [self._seen(output) for output in held.outputs if output.request_id not in shadows]
        for pair in pairs:
            if pair.clean.request_id in self.pairs:
                self._settle(pair)
        for request in ended:
            held = outputs.setdefault(request.client_index, EngineCoreOutputs())
            held.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                )
            )
        return outputs

    def _settle(self, pair: Pair) -> None:
        """After a step: let go of what has ended, and of a shadow that has no more to say."""
        clean, shadow = pair.clean, pair.shadow
        said = len(clean.output_token_ids)
        over = pair.settings.config.tokens == "first" and said > 0
        if clean.is_finished() or over:
            self.pairs.pop(clean.request_id, None)
            self.pairs.pop(shadow.request_id, None)
            if not shadow.is_finished():
                super().finish_requests(shadow.request_id, RequestStatus.FINISHED_ABORTED)
            return
        theirs = shadow.output_token_ids
        if shadow.is_finished() or len(theirs) != said or (said and theirs[-1] != clean.output_token_ids[-1]):
            self._fail(clean.request_id, f"its shadow is out of step: {len(theirs)} tokens for {said}")

    def _fail(self, name: str, why: str) -> None:
        logger.error("TCCD request %s fails: %s", name, why)
        self.failed[name] = why

    def _seen(self, output: Any) -> Any:
        """What a request's usage says was cached: what was there when it came, without its own shadow's blocks."""
        pair = self.pairs.get(output.request_id)
        stats = output.prefill_stats
        if pair is not None and stats is not None and pair.cached is not None:
            stats.set(stats.num_prompt_tokens, min(pair.cached, stats.num_prompt_tokens), 0)
        return output

    # A step

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's step, in which pairs stay in step."""
        if not self.pairs:
            return super().schedule(*args, **kwargs)
        self._granted, self._used, self._last, self._preempted = {}, 0, set(), False
        self._adjacent()
        self._holder_first()
        output = super().schedule(*args, **kwargs)
        for name, pair in self.pairs.items():
            if name == pair.clean.request_id and (name in self._last) != (pair.shadow.request_id in self._last):
                self._fail(name, "its last row ran without its shadow's, or its shadow's without its own")
        self._keep_images(output)
        self._unstick(output)
        self._granted = {}
        return output

    def _keep_images(self, output: Any) -> None:
        """A request that is preempted runs its image again, though another's blocks held it as it came."""
        for new in output.scheduled_new_reqs:
            objects.keep_images(new, self.requests[new.req_id].mm_features)

    def _unstick(self, output: Any) -> None:
        """Steps that run nothing while sequences wait would go on for ever: the last pair makes room."""
        if output.total_num_scheduled_tokens or self.pause_state == PauseState.PAUSED_ALL:
            self._idle = 0
            return
        waits = bool(self.running) and not any(request.num_in_flight_tokens for request in self.running)
        self._idle = self._idle + 1 if waits else 0
        if self._idle > PATIENCE:
            pair = next((self.pairs[r.request_id] for r in self.running[::-1] if r.request_id in self.pairs), None)
            if pair is not None:
                self._fail(pair.clean.request_id, "it and its shadow do not fit into the KV cache together")
            self._idle = 0

    def _allocate_slots(self, original: Any, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        blocks = original(request, num_new_tokens, *args, **kwargs)
        if blocks is not None and self.pairs:
            name = request.request_id
            self._granted[name] = num_new_tokens
            self._used += num_new_tokens
            if name in self.pairs and request.status == RequestStatus.RUNNING and num_new_tokens >= left(request):
                self._last.add(name)
        return blocks

    def _record_prefix_cache_stats(self, original: Any, request: Any, found: int) -> None:
        """`/metrics` counts a contrasted request once, as it was found when it came."""
        pair = self.pairs.get(request.request_id)
        if pair is None or request is pair.clean:
            original(request, found if pair is None or pair.cached is None else pair.cached)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures, in which a contrasted request is one."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.pairs:
            shadows = [p.shadow for name, p in self.pairs.items() if name == p.shadow.request_id]
            running = sum(shadow.status == RequestStatus.RUNNING for shadow in shadows)
            objects.count_less(stats, running, len(shadows) - running)
        return stats

    def _adjacent(self) -> None:
        """Each shadow right before its request, so that no other sequence comes between."""
        before = {}
        for request in self.running:
            pair = self.pairs.get(request.request_id)
            if pair is not None and request is pair.shadow and pair.clean.status == RequestStatus.RUNNING:
                before[pair.clean.request_id] = request
        if not before:
            return
        moved = {id(request) for request in before.values()}
        order: list[Any] = []
        for request in self.running:
            if id(request) in moved:
                continue
            if request.request_id in before:
                order.append(before[request.request_id])
            order.append(request)
        self.running[:] = order

    def _holder_first(self) -> None:
        """A request whose shadow is in goes before all that wait: its pair holds blocks.

        vLLM does the same for its own: behind a request that does not fit, a holder of blocks would wait for ever.
        """
        for name, pair in self.pairs.items():
            clean = pair.clean
            half = pair.shadow.status == RequestStatus.RUNNING != clean.status
            if name == clean.request_id and half and self.waiting.peek_request() is not clean:
                self.waiting.remove_request(clean)
                self.waiting.prepend_request(clean)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._last.discard(request.request_id)
        self._used -= self._granted.pop(request.request_id, 0)
        self._preempted = True
        super()._preempt_request(request, *args, **kwargs)

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Whether a waiting sequence may be admitted now."""
        if request.request_id in self.failed or (self._preempted and self.pairs):
            return False  # as in vLLM, a step that takes blocks away admits nobody
        pair = self.pairs.get(request.request_id)
        if pair is None:
            return super()._handle_blocked_waiting_request(request)
        if request is pair.shadow:
            clean = pair.clean
            if clean.status != RequestStatus.RUNNING and not super()._handle_blocked_waiting_request(clean):
                return False
            if len(self.running) + 2 > self.max_num_active_reqs or self._half(pair):
                return False
            return super()._handle_blocked_waiting_request(request)
        if pair.shadow.status != RequestStatus.RUNNING:
            return False
        done = pair.shadow.num_computed_tokens + self._granted.get(pair.shadow.request_id, 0)
        if self.kv_cache_manager.enable_caching and done < pair.shared // self.block_size * self.block_size:
            return False
        return super()._handle_blocked_waiting_request(request)

    def _half(self, pair: Pair) -> bool:
        """Whether another pair has only its shadow in: two of them could hold all blocks and wait for more."""
        return any(
            other is not pair and other.shadow.status == RequestStatus.RUNNING != other.clean.status
            for other in self.pairs.values()
        )

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """A hit leaves two tokens at least: one for admission, and the last for a step with the other sequence."""
        blocks, count, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        pair = self.pairs.get(request.request_id)
        if pair is None:
            return blocks, count, boundary, diverged
        if request is pair.shadow and pair.cached is None:
            pair.cached = super()._get_local_prefix_cache_hit(pair.clean)[1]
        if count >= request.num_tokens - 1:
            count = (count - 1) // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, count)
        return blocks, count, boundary, diverged

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """How many tokens a sequence may run in this step: its last one only beside that of the other sequence."""
        count = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        pair = self.pairs.get(request.request_id)
        if pair is None or count == 0:
            return count
        if request.status != RequestStatus.RUNNING:
            return min(count, request.num_tokens - num_computed_tokens - 1)
        if count < left(request):
            return count
        if count > 1:
            return count - 1
        if request is pair.shadow:
            return int(self._room(pair))
        return int(pair.shadow.request_id in self._last)

    def _room(self, pair: Pair) -> bool:
        """Whether both last rows fit into this step; makes room for both as vLLM would for each."""
        clean = pair.clean
        if clean.status != RequestStatus.RUNNING or left(clean) != 1:
            return False
        if max(s.num_computed_tokens for s in pair.both) + 1 >= self.max_model_len:
            return False  # vLLM runs no step behind the last position
        if self.max_num_scheduled_tokens - self._used < 2:
            return False
        need = self._need(clean) + self._need(pair.shadow)
        pool = self.kv_cache_manager.block_pool
        while need > pool.get_num_free_blocks():
            if self.running[-1] is clean:
                return False
            self._preempt_request(self.running.pop(), time.monotonic())
        return True

    def _need(self, request: Any) -> int:
        """Blocks that one more token of a running sequence takes."""
        known = request.num_computed_tokens
        return int(
            self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=known + 1,
                new_computed_blocks=self.kv_cache_manager.empty_kv_cache_blocks.blocks,
                num_encoder_tokens=0,
                total_computed_tokens=known,
                num_local_computed_tokens=known,
                num_tokens_main_model=known + 1,
            )
        )


def left(request: Any) -> int:
    """Known tokens of a sequence that are not computed yet."""
    return int(request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens)


class AsyncPairScheduler(PairScheduler, AsyncScheduler):
    """The same over the scheduler that plans a step while the one before it runs."""
