"""Processes whose environment is not the front end's, as on another machine."""

from __future__ import annotations

import json
import os
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

WORKER, CORE = "TCCD_TEST_WORKER", "TCCD_TEST_CORE"


def change(variable: str) -> None:
    """Set what a JSON object in the environment says; null takes a variable away."""
    for name, value in json.loads(os.environ[variable]).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class Elsewhere(MultiprocExecutor):
    """An executor whose workers get another environment, as Ray's do."""

    def _init_executor(self) -> None:
        change(WORKER)
        super()._init_executor()


def core_elsewhere() -> None:
    """Let the engine's own process, and what it starts, get another environment."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    create = EngineArgs.create_engine_config

    def create_engine_config(*args: Any, **kwargs: Any) -> Any:
        config = create(*args, **kwargs)
        change(CORE)
        return config

    EngineArgs.create_engine_config = create_engine_config


class Mine:
    """A scheduler or worker of somebody else's."""
