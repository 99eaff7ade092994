"""A real engine in a process of its own, which runs a test's functions on it: `run(function, *arguments)`.

The process is thrown away with the engine, so engines with other banks, runners and settings don't meet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Ask:
    """One request: prompt text, its images, sampling parameters and extra arguments."""

    prompt: str
    images: tuple = ()
    params: dict = field(default_factory=dict)
    extra: dict | None = None


class Host:
    """Starts an engine and calls functions on it; `LLM`'s arguments as keywords.

    Args:
        model: folder.
        bank: value of TCCD_BANK, or None.
        v2: run Model Runner V2, under Triton's interpreter.
        env: more of the environment.
    """

    def __init__(
        self, model: Path, bank: str | None, v2: bool = False, env: dict[str, str] | None = None, **llm: Any
    ) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed with the host
        address = tempfile.mktemp(suffix=".sock")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TCCD_", "VLLM_"))}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **({"TCCD_BANK": bank} if bank else {}),
            **({"TCCD_TEST_V2": "1"} if v2 else {}),
            **(env or {}),
        }
        self._alone = (
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and "distributed_executor_backend" not in llm
        )
        with Listener(address, "AF_UNIX") as listener:
            command = [sys.executable, "-m", "tests.tccd.decoding.vllm.host", address]
            self._process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT
            )
            listener._listener._socket.settimeout(120)  # type: ignore[attr-defined]
            self._connection = listener.accept()
        self._connection.send((str(model), llm))
        try:
            self._answer()
        except RuntimeError as error:
            self.close()
            raise RuntimeError(f"{error}\n{self.log()}") from None

    def run(self, function: Callable, *args: Any) -> Any:
        """`function(llm, *args)` in the engine's process; raises what it raised."""
        self._connection.send((function, args))
        return self._answer()

    def log(self) -> str:
        """What the process printed."""
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """Stop the engine; one without processes of its own needs no time to end them."""
        self._connection.close()
        if self._alone:
            self._process.kill()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> Any:
        try:
            error, value = self._connection.recv()
        except EOFError:
            self._process.wait(30)
            raise RuntimeError(f"the engine's process died:\n{self.log()[-4000:]}") from None
        if error:
            raise error
        return value


def _serve(address: str) -> None:
    if os.environ.get("TCCD_TEST_V2"):
        import tests.environment.vllm_v2_on_cpu  # noqa: F401 - before vLLM
    if os.environ.get("TCCD_TEST_ABSENT"):
        _hide()
    if os.environ.get("TCCD_TEST_CORE"):
        from tests.tccd.decoding.vllm.elsewhere import core_elsewhere

        core_elsewhere()
    if os.environ.get("TCCD_TEST_ASYNC"):
        _plan_ahead()
    connection = Client(address, "AF_UNIX")
    model, options = connection.recv()
    from vllm import LLM

    try:
        llm = LLM(model, **options)
    except BaseException as error:
        traceback.print_exc()
        connection.send((RuntimeError(f"{type(error).__name__}: {error}"), None))
        return
    connection.send((None, None))
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send((None, function(llm, *args)))
        except Exception as error:
            traceback.print_exc()
            connection.send((RuntimeError(f"{type(error).__name__}: {error}"), None))


def _hide() -> None:
    """As if tccd were not installed: its entry points are gone."""
    import importlib.metadata as metadata

    original = metadata.entry_points

    def without(**params: Any) -> Any:
        found = original(**params)
        return metadata.EntryPoints(e for e in found if not e.value.startswith("tccd.")) if params else found

    metadata.entry_points = without  # type: ignore[assignment]


def _plan_ahead() -> None:
    """Asynchronous scheduling, which vLLM turns off on a CPU."""
    from vllm.platforms.cpu import CpuPlatform

    settle = CpuPlatform.check_and_update_config

    def ahead(config: Any) -> None:
        settle(config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = staticmethod(ahead)  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    _serve(sys.argv[1])
