"""Fair measuring on a busy machine: ways take turns, medians are compared, CPU time beside wall time."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from probes.report.envelope import envelope, installed

T = TypeVar("T")

_KIB = 1024


class Seconds(NamedTuple):
    """Process CPU time (all threads) and wall time."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Seconds:
        """The clocks' readings."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, earlier: Seconds, parts: int = 1) -> Seconds:
        """What passed since an earlier reading, over `parts`."""
        return Seconds((self.cpu - earlier.cpu) / parts, (self.wall - earlier.wall) / parts)


def alternate(ways: Mapping[str, Callable[[], T]], rounds: int, warmup: int = 1) -> dict[str, list[T]]:
    """Run every way once a round, so that a slow moment of the machine meets them all.

    Args:
        ways: name -> what to run.
        rounds: rounds that count. Each starts with the next way, so that none always follows the same.
        warmup: rounds before them that don't.

    Returns:
        Name -> what the way returned in each round that counts.
    """
    names = list(ways)
    found: dict[str, list[T]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            value = ways[name]()
            if i >= warmup:
                found[name].append(value)
    return found


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A way that returns the wall seconds of `run`."""

    def way() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return way


def spread(values: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "iqr": high - low}


def peak_memory(run: Callable[[], Any]) -> int | None:
    """Bytes by which `run` raised the process's resident memory at most; None where Linux does not say."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed must not be taken for nothing
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith(name + ":"))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": platform.machine(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
    }


def header(title: str, config: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """The envelope of figures of speed, and what they were taken on.

    Args:
        title: what was timed.
        config: what it was timed with.
        packages: whose versions matter, beside those of every report.
    """
    return envelope(title, config, installed(*packages), "tccd-speed/1") | {"machine": machine()}


def write(found: dict[str, Any], path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
