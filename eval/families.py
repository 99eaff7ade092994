"""The replacement probe over the default models of every family: `python -m eval.families --out out/families`.

Fits a bank for each model on train questions of easy-VQA and digits, probes it on test questions of both, and
compares all of them on one page. A model whose report is there already is not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from eval import zoo
from eval.banks import fit_banks
from eval.datasets.easy_vqa import sample
from probes.compare import compare, read_report
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.report import write_report
from tccd.data import Sample, load_samples

SOURCES = ("easy-vqa", "digits")
K = 16
GRID = Grid(
    layers={"text": (0, 1, 2, 3, 4), "vision": (0, 1, 2, 3, 4)},
    alphas=(0.0, 0.4),
    alpha_cd=(0.5, 2.0),
    beta=(0.1,),
    controls=True,
)


def questions(split: str, each: int, seed: int = 42) -> list[Sample]:
    """Drawn questions of both sources."""
    return [one for source in SOURCES for one in sample(list(load_samples(source, split=split)), each, seed)]


def probe(name: str, each: int, out: Path) -> None:
    """Measure one model and write its report."""
    model, processor = zoo.load(name)
    data = " and ".join(SOURCES)
    banks = fit_banks(model, processor, questions("train", 400), [K], data=f"{data} train")
    result = run(model, processor, questions("test", each), banks[K], GRID, name=name, batch_size=64, examples=3)
    result["config"] |= {"data": data, "split": "test", "limit": each, "seed": 42}
    write_report(result, out)


def main() -> None:
    """Measure every default model, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/families"))
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=list(zoo.NAMES), help="default: all")
    parser.add_argument("--each", type=int, default=500, help="questions of each source (default 500)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    files = [options.out / name / "report.json" for name in options.models]
    for name, file in zip(options.models, files, strict=True):
        if not file.exists():
            probe(name, options.each, file.parent)
        console.print(str(file), markup=False, soft_wrap=True)
    if len(files) > 1:
        merged = compare({str(file): read_report(file) for file in files})
        for path in write_report(merged, options.out / "compare"):
            console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
