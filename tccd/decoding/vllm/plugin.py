"""The entry points that vLLM loads in each of its processes."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NoReturn

from tccd.decoding.vllm import banks
from tccd.errors import TCCDError


def register() -> None:
    """`vllm.general_plugins`: put the erased stream into vLLM, if the operator named a bank; else do nothing.

    Raises:
        TCCDError: vLLM is of another release than was tested, or a bank can't be read.
    """
    if not banks.enabled():
        return
    import vllm

    from tccd.decoding.vllm import refusals

    try:
        refusals.check_version(vllm.__version__)
        banks.loaded()
    except TCCDError as error:
        _stop(error)

    from tccd.decoding.vllm import admission, metrics, runners

    admission.install()
    metrics.install()
    runners.install()
    _check_early()


def _check_early() -> None:
    """Check every engine's configuration: in the front end before any process starts, and in the engine.

    The engine's own start is under way when it loads plugins, so its scheduler's is taken.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.scheduler import Scheduler

    from tccd.decoding.vllm import admission

    if getattr(EngineArgs.create_engine_config, "tccd", False):
        return
    create, start = EngineArgs.create_engine_config, Scheduler.__init__

    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        try:
            check(config)
        except TCCDError as error:
            _stop(error)
        admission.install_http()
        return config

    @functools.wraps(start)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check(vllm_config)
        start(self, vllm_config, *args, **kwargs)

    create_engine_config.tccd = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config
    Scheduler.__init__ = __init__


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


def _stop(error: TCCDError) -> NoReturn:
    """One clear line for a server's operator; the exception for a program that called us."""
    if Path(sys.argv[0]).name in ("vllm", "api_server.py"):
        sys.exit(f"tccd: {error}")
    raise error
