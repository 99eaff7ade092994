"""Where the erased stream meets vLLM's two model runners: thin adapters around one core.

V1 runs on CPUs and some GPUs, V2 is the default on CUDA. Each step the scheduler tells the runner which requests
run, and how many tokens of each (`execute_model`). The runner lays out the batch, sets a forward context with
attention metadata and cache slots by layer, and calls the model. Here

- `execute_model` keeps a `Tail` for each TCCD request that comes, and drops it when the request is done;
- once the batch is laid out, a `Plan` is made of the tails in it;
- around the model's call the erased stream is switched on, where there is a plan.

V1 and V2 differ in where a batch is laid out and in what is around the model's call. A step without a TCCD
request passes through untouched.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tccd.decoding.vllm import banks, objects
from tccd.decoding.vllm.batch import Chunk, Plan, Tail, plan
from tccd.decoding.vllm.settings import settings, tail_start
from tccd.decoding.vllm.stream import ErasedStream
from tccd.errors import TCCDError, UnsupportedModelError
from tccd.modality import vision_token_ids

#: The runner that is in `execute_model` now, with its state; one thread of a process runs a model.
_now: RunnerState | None = None


class RunnerState:
    """TCCD requests of one runner, and its erased stream.

    Args:
        runner: after `load_model`.

    Attributes:
        version: of the runner, "V1" or "V2".
        stream: the second layers of its model.
        tails: the text tail of each TCCD request that vLLM has not finished, by the request's id.
    """

    def __init__(self, runner: Any) -> None:
        config = runner.vllm_config
        self.version = "V2" if _is_v2(runner) else "V1"
        self.banks = banks.loaded()
        self.vision_ids = vision_token_ids(config.model_config.hf_config)
        self.stream = ErasedStream(runner.model, config, self.banks, runner.device)
        self.tails: dict[str, Tail] = {}
        self.scheduled: Any = None
        self.plan: Plan | None = None
        self.block_table: Tensor | None = None

    def observe(self, scheduled: Any) -> None:
        """Take note of requests that come, resume after a preemption, or go.

        Raises:
            TCCDError: a TCCD request without an image came past admission.
        """
        for name in scheduled.finished_req_ids:
            self.tails.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            self.tails.pop(new.req_id, None)
            found = settings(new.sampling_params.extra_args, self.banks) if new.sampling_params else None
            if found is None:
                continue
            start = None if new.prompt_token_ids is None else tail_start(new.prompt_token_ids, self.vision_ids)
            if start is None:
                raise TCCDError(
                    f"TCCD request {new.req_id} has no image in its prompt; admission should refuse it"
                )
            self.tails[new.req_id] = Tail(found, start, len(new.prompt_token_ids))
        for name in scheduled.scheduled_cached_reqs.resumed_req_ids:
            if name in self.tails:
                self.tails[name].started = False
        self.scheduled = scheduled

    @property
    def asked(self) -> bool:
        """Whether this step has a TCCD request."""
        return any(name in self.tails for name in self.scheduled.num_scheduled_tokens)

    def lay_out(self, names: list[str], starts: Any, computed: Any, groups: Any, block_table: Tensor) -> None:
        """Settle what the erased stream does in this step.

        Args:
            names: the batch's requests, in order.
            starts: first row of each request and the end of the last, at least (requests + 1,).
            computed: tokens of each request in the cache before this step.
            groups: the runner's attention groups.
            block_table: blocks of every request, shape (requests or more, blocks).
        """
        chunks = [
            Chunk(self.tails[name], i, int(starts[i]), int(starts[i + 1] - starts[i]), int(computed[i]))
            for i, name in enumerate(names)
            if name in self.tails
        ]
        self.plan = plan(chunks, self.stream.block_size(groups)) if chunks else None
        self.block_table = block_table

    def forward(self, groups: Any, forward: Callable[[], Any]) -> Any:
        """Call the model, the erased rows beside the clean ones where this step has any."""
        if self.plan is None:
            return forward()
        settled, self.plan = self.plan, None
        assert self.block_table is not None
        with self.stream.running(settled, self.block_table, groups):
            return forward()


_states: weakref.WeakKeyDictionary[Any, RunnerState] = weakref.WeakKeyDictionary()


def running() -> list[RunnerState]:
    """What this process runs: one state a loaded model."""
    return list(_states.values())


def _load_model(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(runner, *args, **kwargs)
    if runner not in _states:  # CPUModelRunner's own load_model may call the one it overrides
        _states[runner] = state = RunnerState(runner)
        if state.version == "V2":
            _v2_model(state, runner)
    return result


def _v2_model(state: RunnerState, runner: Any) -> None:
    """V2 has no method around the model's call, so its model's own `forward` is wrapped."""
    model = runner.model
    forward = objects.checked("model", model)

    @functools.wraps(forward)
    def model_forward(*args: Any, **kwargs: Any) -> Any:
        if _now is not state:
            return forward(*args, **kwargs)
        return state.forward(runner.attn_groups, lambda: forward(*args, **kwargs))

    objects.put("model", model, model_forward)


def _profile_run(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Let vLLM see the memory of a step whose rows are all erased, before it gives the rest to the cache."""
    result = original(runner, *args, **kwargs)
    state = _states.get(runner)
    if state is not None:
        with state.stream.all_rows_erased():
            original(runner, *args, **kwargs)
    return result


def _reload_weights(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    if runner in _states:
        raise UnsupportedModelError("TCCD was not tested with weights that change while the engine runs")
    return original(runner, *args, **kwargs)


def _execute_model(
    original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    global _now
    state = _states.get(runner)
    dummy = kwargs.get("dummy_run") or not hasattr(scheduler_output, "num_scheduled_tokens")
    if state is None or dummy:
        return original(runner, scheduler_output, *args, **kwargs)
    state.observe(scheduler_output)
    _now = state if state.asked else None
    try:
        return original(runner, scheduler_output, *args, **kwargs)
    finally:
        _now = None


def _shutdown(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    state = _states.pop(runner, None)
    if state is not None:
        state.stream.release()
    return original(runner, *args, **kwargs)


def _v1_forward(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    state = _now
    if state is None or state is not _states.get(runner):
        return original(runner, *args, **kwargs)
    batch = runner.input_batch
    state.lay_out(
        batch.req_ids,
        runner.query_start_loc.np,
        batch.num_computed_tokens_cpu,
        runner.attn_groups,
        batch.block_table[0].get_device_tensor(batch.num_reqs),
    )
    return state.forward(runner.attn_groups, lambda: original(runner, *args, **kwargs))


def _v2_prepare_attn(original: Callable[..., Any], runner: Any, input_batch: Any) -> Any:
    block_tables, slot_mappings = original(runner, input_batch)
    state = _now
    if state is not None and state is _states.get(runner):
        state.lay_out(
            input_batch.req_ids,
            input_batch.query_start_loc_np,
            input_batch.num_computed_tokens_np,
            runner.attn_groups,
            block_tables[0],
        )
    return block_tables, slot_mappings


def _v2_dispatch(original: Callable[..., Any], *args: Any, need_eager: bool = False, **kwargs: Any) -> Any:
    # A full CUDA graph never calls the model's modules, so V2 has to be told before it chooses one.
    return original(*args, need_eager=need_eager or _now is not None, **kwargs)


def _is_v2(runner: Any) -> bool:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    return isinstance(runner, GPUModelRunner)


#: The joints of both runners; a process that never loads a model is left as it is.
AROUND: dict[str, Callable[..., Any]] = {
    **{f"{runner} load": _load_model for runner in ("V1", "CPU", "V2")},
    **{f"{runner} execute": _execute_model for runner in ("V1", "V2")},
    **{f"{runner} profile": _profile_run for runner in ("V1", "V2")},
    **{f"{runner} reload": _reload_weights for runner in ("V1", "V2")},
    **{f"{runner} shutdown": _shutdown for runner in ("V1", "V2")},
    "V1 forward": _v1_forward,
    "V2 layout": _v2_prepare_attn,
    "V2 graph": _v2_dispatch,
}
