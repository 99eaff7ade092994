"""Where our code stands in vLLM's: one table, one guarded `wrap`, and whether this process has all of it.

vLLM has no interface for a second stream, so the plugin puts wrappers around functions of its classes, which call
what was there. vLLM promises nobody that these functions stay. So each place says what shape it was written for,
and where another shape is found the start fails in one line that names the place. What is done at a place is in
the file that the table names. No file but this one, and `objects.py` for single models and requests, sets an
attribute of vLLM.

To follow a release: run `tests/tccd/decoding/vllm/test_joints.py`, mend what it names, run the engine tests, then
widen `refusals.TESTED`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tccd.decoding.vllm.refusals import TESTED_RANGE
from tccd.errors import ConfigError


@dataclass(frozen=True)
class Joint:
    """One place where we meet vLLM.

    Attributes:
        name: how this package calls it.
        place: `module:attribute`; of a loaded model only the attribute.
        takes: parameters that it was written for, in order; `...` stands for others, passed on untouched.
        file: the file of this folder that uses it.
        why: what is done there.
        awaits: whether it is a coroutine function.
    """

    name: str
    place: str
    takes: str
    file: str
    why: str
    awaits: bool = False

    @property
    def attribute(self) -> str:
        """Name of the function."""
        return self.place.rpartition(":")[2].rpartition(".")[2]

    def owner(self) -> Any:
        """The class or module of vLLM that the function is found on.

        Raises:
            ImportError, AttributeError: it isn't there.
        """
        module, _, path = self.place.partition(":")
        owner = import_module(module)
        for part in path.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner

    def misfit(self, function: Any) -> str | None:
        """What is wrong with a function that should have this joint's shape; None where it fits."""
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return "is no function with parameters"
        wanted = "".join("(?:[^,]+,)*" if t == "..." else re.escape(t) + "," for t in self.takes.split(", "))
        if not re.fullmatch(wanted, "".join(f"{name}," for name in names)):
            return f"takes ({', '.join(names)}), written for ({self.takes})"
        if inspect.iscoroutinefunction(inspect.unwrap(function)) != self.awaits:
            return f"is {'no' if self.awaits else 'a'} coroutine function"
        return None


_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_ENGINE = "vllm.v1.engine"

#: Functions of vLLM that are wrapped for the life of a process.
WRAPPED = (
    Joint(
        "configuration",
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "self, ...",
        "plugin",
        "the front end refuses untested configurations and writes the promise into this one",
    ),
    Joint(
        "request in",
        f"{_ENGINE}.input_processor:InputProcessor.process_inputs",
        "self, request_id, prompt, params, ...",
        "guard",
        "a rendered request that can't be decoded is refused, and its images forgotten",
    ),
    Joint(
        "prompts in",
        "vllm.entrypoints.common.offline:OfflineInferenceMixin._render_and_add_requests",
        "self, prompts, params, ...",
        "guard",
        "all parameters of a `LLM` call are checked before the first prompt is rendered",
    ),
    Joint(
        "line in",
        "vllm.entrypoints.serve.engine.serving:BaseServing._check_model",
        "self, request",
        "guard",
        "a line of a `run-batch` file has passed no door",
        awaits=True,
    ),
    Joint(
        "server",
        "vllm.entrypoints.launchers.app:init_entrypoints_middleware",
        "args, app, ...",
        "guard",
        "puts the door before the server's addresses",
    ),
    Joint(
        "server engine",
        f"{_ENGINE}.async_llm:AsyncLLM.__init__",
        "self, vllm_config, ...",
        "metrics",
        "tells the counters the model's name",
    ),
    Joint(
        "offline engine",
        f"{_ENGINE}.llm_engine:LLMEngine.__init__",
        "self, vllm_config, ...",
        "metrics",
        "tells the counters the model's name",
    ),
    Joint(
        "output expected",
        f"{_ENGINE}.output_processor:OutputProcessor.add_request",
        "self, request, ...",
        "metrics",
        "notes which requests are TCCD's",
    ),
    Joint(
        "output",
        f"{_ENGINE}.output_processor:OutputProcessor.process_outputs",
        "self, engine_core_outputs, ...",
        "metrics",
        "counts their tokens",
    ),
)

#: Methods of vLLM's scheduler and worker that our subclasses override, and those whose results they rely on.
OVERRIDDEN = tuple(
    Joint(f"scheduler {name}", f"{_SCHEDULER}.{name}", takes, "scheduler", why)
    for name, takes, why in (
        ("add_request", "self, request", "a contrasted request comes with its shadow"),
        ("finish_requests", "self, request_ids, finished_status", "both end together"),
        (
            "update_from_output",
            "self, scheduler_output, model_runner_output",
            "what a shadow puts out is dropped; a pair out of step fails",
        ),
        ("schedule", "self, ...", "a step runs the last rows of both, or of neither"),
        ("_preempt_request", "self, request, timestamp, ...", "blocks given back are counted"),
        ("_handle_blocked_waiting_request", "self, request", "a request follows its shadow"),
        ("_get_local_prefix_cache_hit", "self, request", "a hit leaves two tokens"),
        (
            "_reserve_prefill_lookahead",
            "self, request, num_computed_tokens, num_new_tokens",
            "says how many tokens a sequence runs",
        ),
        ("make_stats", "self, ...", "a contrasted request is one request"),
    )
) + tuple(
    Joint(f"worker {name}", f"vllm.v1.worker.gpu_worker:Worker.{name}", takes, "worker", why)
    for name, takes, why in (
        ("load_model", "self, ...", "attaches to the loaded model"),
        ("execute_model", "self, scheduler_output", "hears which sequences come and go"),
        ("reload_weights", "self, ...", "refuses weights that change under the bank"),
    )
)

#: What is read or set on vLLM's own objects: nothing is wrapped, but the fields have to be there.
READ = (
    Joint(
        "promise", "vllm.config:VllmConfig", "..., additional_config, ...", "plugin", "is handed to every process"
    ),
    Joint(
        "rendered request",
        f"{_ENGINE}:EngineCoreRequest",
        "request_id, prompt_token_ids, mm_features, sampling_params, ..., prompt_embeds, ..., resumable, ...",
        "guard",
        "is checked",
    ),
    Joint(
        "scheduled",
        "vllm.v1.core.sched.output:SchedulerOutput",
        "scheduled_new_reqs, scheduled_cached_reqs, num_scheduled_tokens, ..., finished_req_ids, ...",
        "worker",
        "says what a step runs",
    ),
    Joint(
        "scheduled anew",
        "vllm.v1.core.sched.output:NewRequestData",
        "req_id, prompt_token_ids, ..., sampling_params, ...",
        "worker",
        "a shadow's link",
    ),
    Joint(
        "V2 batch",
        "vllm.v1.worker.gpu.input_batch:InputBatch",
        "req_ids, ..., query_start_loc_np, ..., num_computed_tokens_np, ...",
        "worker",
        "where each sequence's rows are",
    ),
    Joint(
        "sequence",
        "vllm.v1.request:Request",
        "request_id, prompt_token_ids, sampling_params, pooling_params, client_index, arrival_time, ..., "
        "mm_features, lora_request, cache_salt, priority, ..., block_hasher, ...",
        "pairs",
        "a shadow is one",
    ),
    Joint(
        "blocks needed",
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_blocks_to_allocate",
        "self, request_id, num_tokens, new_computed_blocks, num_encoder_tokens, total_computed_tokens, "
        "num_local_computed_tokens, num_tokens_main_model, ...",
        "scheduler",
        "room is made for two",
    ),
)

#: Functions of single objects: of each loaded model, its runner, and the scheduler's cache.
LOADED = (
    Joint("logits", "compute_logits", "hidden_states, ...", "sampling", "contrasts"),
    Joint("layer", "forward", "positions, hidden_states, residual, ...", "erasure", "rows are moved behind it"),
    Joint("slots", "allocate_slots", "request, num_new_tokens, ...", "scheduler", "what a step runs is counted"),
    Joint(
        "cache counts",
        "record_prefix_cache_stats",
        "request, num_hits",
        "scheduler",
        "`/metrics` counts a contrasted request once",
    ),
    Joint("V1 forward", "_model_forward", "...", "worker", "the batch is laid out"),
    Joint("V1 sample", "_sample", "logits, spec_decode_metadata", "worker", "a shadow gets its request's token"),
    Joint("V1 bookkeeping", "_bookkeeping_sync", "...", "worker", "seeds of unfinished prompts come back"),
    Joint("V2 layout", "prepare_attn", "input_batch", "worker", "the batch is laid out"),
    Joint(
        "V2 sample",
        "sample",
        "hidden_states, input_batch, grammar_output",
        "worker",
        "a shadow gets its request's token",
    ),
)

#: Every joint by its name.
NAMED = {joint.name: joint for joint in (*WRAPPED, *OVERRIDDEN, *READ, *LOADED)}
_installed = False


def wrap(around: Mapping[str, Callable[..., Any]]) -> None:
    """Put functions around vLLM's: all of them, or none where one place has another shape than it was written for.

    What their files only read is checked too. A second call changes nothing.

    Args:
        around: name of a joint -> function that gets what was there, then the call's arguments; of a coroutine
            function another one.

    Raises:
        ConfigError: names each joint that does not fit, vLLM's release, and those that were tested.
    """
    joints = [NAMED[name] for name in around]
    read = [joint for joint in READ if joint.file in {j.file for j in joints}]
    check((*joints, *read))
    for joint in joints:
        _put_around(joint.owner(), joint.attribute, around[joint.name])


def check(joints: Sequence[Joint]) -> None:
    """Compare places in vLLM with the shapes that they were written for.

    Raises:
        ConfigError: names each joint that does not fit, vLLM's release, and those that were tested.
    """
    wrong = [f"{joint.name!r} ({joint.place}) {said}" for joint in joints if (said := _misfit(joint))]
    if wrong:
        from vllm import __version__

        raise ConfigError(
            f"vLLM {__version__} differs from what TCCD was written for (tested: {TESTED_RANGE}): "
            f"{'; '.join(wrong)}. Install a tested release, or start vLLM without TCCD_BANK to go without TCCD"
        )


def _misfit(joint: Joint) -> str | None:
    try:
        found = vars(joint.owner())[joint.attribute]
    except (ImportError, AttributeError, KeyError):
        return "is not there"
    return joint.misfit(found)


def _put_around(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = vars(owner)[name]
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
