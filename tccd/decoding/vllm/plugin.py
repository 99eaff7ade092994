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

from tccd.decoding.vllm import banks, joints, objects
from tccd.decoding.vllm.settings import served
from tccd.errors import TCCDError

#: Classes of ours that an engine takes for its own, by whether it plans a step while the one before it runs.
SCHEDULERS = {
    asynchronous: f"tccd.decoding.vllm.scheduler.{name}"
    for asynchronous, name in ((False, "PairScheduler"), (True, "AsyncPairScheduler"))
}
WORKER = "tccd.decoding.vllm.worker.Worker"
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

    from tccd.decoding.vllm import metrics

    try:
        refusals.check_version(vllm.__version__)
        banks.loaded()
        joints.check([*joints.READ, *joints.OVERRIDDEN])
        joints.wrap(metrics.AROUND | AROUND)
    except TCCDError as error:
        _stop(error)
    joints.complete()


def check(config: Any) -> None:
    """Refuse an engine's configuration that was not tested, or whose model a bank does not fit.

    Raises:
        UnsupportedModelError: names what was not tested.
        BankMismatchError: names the bank.
    """
    from tccd.decoding.vllm import refusals

    refusals.check_config(config, fitted=bool(banks.loaded().names))
    refusals.check_banks(banks.loaded(), refusals.identity(config))


def _create_engine_config(original: Callable[..., Any], arguments: Any, *args: Any, **kwargs: Any) -> Any:
    """The front end, before any other process starts."""
    from tccd.decoding.vllm import guard, promise

    config = original(arguments, *args, **kwargs)
    try:
        if joints.installed():
            check(config)
            promise.make(config)
            objects.run_by(config, SCHEDULERS[bool(config.scheduler_config.async_scheduling)], WORKER)
        guard.install()
    except TCCDError as error:
        _stop(error)
    if joints.installed():
        _announce()
    return config


#: All that is wrapped of the engine's start; its scheduler and worker are classes of ours (`SCHEDULERS`,
#: `WORKER`).
AROUND: dict[str, Callable[..., Any]] = {"configuration": _create_engine_config}


def _announce() -> None:
    """One line in a server's log."""
    global _announced
    if not _announced:
        from vllm.logger import init_logger

        found = banks.loaded()
        said = found.describe() or "no bank"
        init_logger("vllm.plugins.tccd").info("TCCD is on: %s; references %s", said, ", ".join(served(found)))
        _announced = True


def _stop(error: TCCDError) -> NoReturn:
    """One clear line for a server's operator; the exception for a program that called us."""
    if Path(sys.argv[0]).name in ("vllm", "api_server.py"):
        sys.exit(f"tccd: {error}")
    raise error
