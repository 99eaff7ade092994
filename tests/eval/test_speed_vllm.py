"""The stored figures of the vLLM benchmark are those that its script would write. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from eval.speed import vllm as speed

STORED = json.loads((Path(speed.__file__).parents[1] / "results" / "speed-vllm.json").read_text())


def test_ratios_are_of_the_medians_over_the_idle_engine_and_the_vanilla_one() -> None:
    assert speed.ratios(STORED["methods"]) == STORED["ratios"]
    assert STORED["bars"] == speed.BARS
    decode = {way: cell["decode"]["cpu_seconds"]["median"] for way, cell in STORED["methods"].items()}
    assert STORED["ratios"]["over_idle"]["decode"]["four_of_four"] == pytest.approx(
        decode["four_of_four"] / decode["idle"]
    )
    assert STORED["ratios"]["over_vanilla"]["decode"]["idle"] == pytest.approx(decode["idle"] / decode["vanilla"])


def test_the_table_shows_both() -> None:
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    speed.show(STORED, console)
    row = next(line for line in console.export_text(clear=False).splitlines() if "four_of_four" in line)
    figures = [
        cell[phase]["four_of_four"] for cell in STORED["ratios"].values() for phase in ("prefill", "decode")
    ]
    assert all(f"{figure:.3f}" in row for figure in figures)
    assert "rows of four_of_four over idle" in console.export_text()
