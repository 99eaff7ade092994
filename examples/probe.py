"""What is each modality worth to a model? Fit a bank, erase with it, compare. Run: python -m examples.probe"""

from __future__ import annotations

import tempfile

from eval.zoo import load
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.report import write_report
from tccd import fit_bank
from tccd.data import load_samples

model, processor = load("llava-grounded")
train = load_samples("easy-vqa", split="train", images=100, per_image=1, seed=0)
test = load_samples("easy-vqa", split="test", limit=200, seed=0)

bank = fit_bank(model, processor, train, layers={"text": 2, "vision": 2}, k=16, prompt=None)
result = run(model, processor, test, bank, Grid(alphas=(0.0,)))
for cell in result["cells"]:
    low, high = cell["ci95"]
    print(f"{cell['modality']} erased: cost {cell['cost']:.3f} ({low:.3f} to {high:.3f})")

with tempfile.TemporaryDirectory() as folder:
    print("report:", ", ".join(path.name for path in write_report(result, folder)))
