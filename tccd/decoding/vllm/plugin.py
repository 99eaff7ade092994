"""The entry points that vLLM loads in each of its processes.

vLLM calls `register` in the front end, in the engine's process and in each worker. With a bank all joints are
wrapped in each of them; those of another kind of process are not called there. Whether the configuration can be
served is checked in the front end, as it is made, and in the engine's process, as its scheduler starts.

Without a bank only the making of the configuration is wrapped: there the guard goes in, which refuses `tccd_*`
keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tccd.decoding.vllm import banks, joints
from tccd.errors import TCCDError

_announced = False


def register() -> None:
    """`vllm.general_plugins`: put the erased stream into vLLM if the operator named a bank, and watch the door.

    Without a bank, all that is added is the refusal of requests that ask for TCCD.

    Raises:
        TCCDError: vLLM is of another release than was tested, or a bank can't be read.
    """
    import vllm

    from tccd.decoding.vllm import guard, refusals

    if not banks.enabled():
        if refusals.is_tested(vllm.__version__):
            guard.watch({"configuration": _create_engine_config})
        return

    from tccd.decoding.vllm import admission, metrics, runners

    try:
        refusals.check_version(vllm.__version__)
        banks.loaded()
        joints.wrap(admission.AROUND | metrics.AROUND | runners.AROUND | AROUND)
    except TCCDError as error:
        _stop(error)
    joints.complete()


def check(config: Any) -> None:
    """Refuse an engine's configuration that was not tested, or whose model a bank does not fit.

    Raises:
        UnsupportedModelError: names what was not tested.
        BankMismatchError: names the bank.
    """
    from tccd.decoding.vllm import admission, refusals
    from tccd.modality import vision_token_ids

    refusals.check_config(config)
    refusals.check_banks(banks.loaded(), refusals.identity(config))
    admission.set_vision_ids(vision_token_ids(config.model_config.hf_config))


def _create_engine_config(original: Callable[..., Any], arguments: Any, *args: Any, **kwargs: Any) -> Any:
    """The front end, before any other process starts."""
    from tccd.decoding.vllm import guard, promise

    config = original(arguments, *args, **kwargs)
    try:
        if joints.installed():
            check(config)
            promise.make(config)
        guard.install()
    except TCCDError as error:
        _stop(error)
    if joints.installed():
        _announce()
    return config


def _start_scheduler(
    original: Callable[..., Any], scheduler: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    from tccd.decoding.vllm import promise

    promise.check(vllm_config)
    check(vllm_config)
    original(scheduler, vllm_config, *args, **kwargs)


#: The engine's own start is under way when it loads plugins, so its scheduler's is taken.
AROUND: dict[str, Callable[..., Any]] = {
    "configuration": _create_engine_config,
    "scheduler start": _start_scheduler,
}


def _announce() -> None:
    """One line in a server's log."""
    global _announced
    if not _announced:
        from vllm.logger import init_logger

        init_logger("vllm.plugins.tccd").info("TCCD is on: %s", banks.loaded().describe())
        _announced = True


def _stop(error: TCCDError) -> NoReturn:
    """One clear line for a server's operator; the exception for a program that called us."""
    if Path(sys.argv[0]).name in ("vllm", "api_server.py"):
        sys.exit(f"tccd: {error}")
    raise error
