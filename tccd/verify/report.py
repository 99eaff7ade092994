"""What verify found, as a text to paste into an issue and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tccd.verify.answering import on_gpu, vllm_version
from tccd.verify.asks import Prepared
from tccd.verify.judge import Verdict


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        model: hub id or folder.
        about: runner, attention backend, CUDA graphs and the like.
        prepared: what was asked.
        verdicts: in order.
        cost: way -> phase -> median seconds, and ratio to the plain batch.
    """

    model: str
    about: dict[str, Any]
    prepared: Prepared
    verdicts: Sequence[Verdict]
    cost: dict[str, dict[str, dict[str, float]]]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(v.passed is not False for v in self.verdicts)

    def text(self) -> str:
        """The report as plain text."""
        about, asked = self.about, self.prepared
        lines = [
            f"tccd verify: {self.model}",
            ", ".join(f"{name} {value}" for name, value in versions().items()),
            f"device: {device()}",
            f"engine: {asked.dtype}, runner {about['runner']}, attention {about['attention_backend']}, "
            f"CUDA graphs {about['cuda_graphs']}, compilation {about['compilation']}, async scheduling "
            f"{'on' if about['async_scheduling'] else 'off'}",
            f"bank: {asked.k} text centroids at layer {asked.layer}, {asked.bank}",
            f"requests: {len(asked.requests)}, {sum(r.extra is not None for r in asked.requests)} of them TCCD",
        ]
        for verdict in self.verdicts:
            mark = {True: "PASS", False: "FAIL", None: "    "}[verdict.passed]
            lines.append(f"{mark} {verdict.name}: {verdict.text}")
            lines += [f"       {line}" for line in verdict.details]
        return "\n".join([*lines, "PASS" if self.passed else "FAIL"])

    def json(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "model": self.model,
            "versions": versions(),
            "device": device(),
            "engine": self.about | {"dtype": self.prepared.dtype},
            "bank": {"file": str(self.prepared.bank), "layer": self.prepared.layer, "k": self.prepared.k},
            "verdicts": [asdict(v) for v in self.verdicts],
            "cost": self.cost,
            "passed": self.passed,
        }


def versions() -> dict[str, str]:
    """Releases of what takes part."""
    import torch
    import transformers

    from tccd import __version__

    return {
        "tccd": __version__,
        "vllm": vllm_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def device() -> str:
    """What it ran on."""
    import torch

    if on_gpu():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU, {name or platform.processor()}"
