"""The README's picture: one question, what the model says, what it says without looking, and their contrast.

python -m eval.picture docs/contrast.png
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.zoo import load
from tccd import Contrast, no_vision
from tccd.data import Sample, load_samples
from tccd.errors import require
from tccd.inputs import encode

MODEL, SETTINGS = "llava-competing", {"alpha_cd": 1.0, "beta": 0.1}
INK, PLAIN, PRIOR, GAIN = "#1f2328", "#8c959f", "#bf8700", "#1a7f37"


def find(model: Any, processor: Any) -> tuple[Sample, list[tuple[str, Tensor]]]:
    """The first question answered by the prior and put right by contrast; its three distributions."""
    contrast = Contrast(model, no_vision(), **SETTINGS)  # type: ignore[arg-type]
    bare = Contrast(model, no_vision(), alpha_cd=1.0)
    for sample in load_samples("easy-vqa", split="test"):
        inputs = dict(encode(processor, [[sample.image]], [sample.prompt]))
        with torch.no_grad():
            clean = model(**inputs).logits[0, -1]
            with contrast:
                combined = model(**inputs).logits[0, -1]
            with bare:  # clean + (clean - reference)
                reference = 2 * clean - model(**inputs).logits[0, -1]
        said, prior, put = (processor.decode(one.argmax()).strip() for one in (clean, reference, combined))
        if sample.answer not in ("yes", "no") and said == prior != sample.answer == put:
            named = [("with the picture", clean), ("without looking", reference), ("contrast", combined)]
            return sample, [(name, logits.softmax(-1)) for name, logits in named]
    raise RuntimeError("no question is put right")


def draw(sample: Sample, processor: Any, found: list[tuple[str, Tensor]], file: Path) -> None:
    """The picture beside the likeliest words of each distribution."""
    pyplot = require("matplotlib.pyplot", "report")
    top = sorted({int(i) for _, p in found for i in p.topk(3).indices}, key=lambda i: -float(found[2][1][i]))[:3]
    figure, axes = pyplot.subplots(1, 4, figsize=(10, 2.4), width_ratios=(1, 1.1, 1.1, 1.1))
    axes[0].imshow(sample.image.resize((256, 256), Image.Resampling.NEAREST))
    axes[0].set_axis_off()
    axes[0].set_title("\n".join(textwrap.wrap(sample.prompt, 20)), fontsize=10, color=INK)
    for axis, (name, probabilities), color in zip(axes[1:], found, (PLAIN, PRIOR, GAIN), strict=True):
        values = [float(probabilities[i]) for i in top]
        bars = axis.barh(range(len(top)), values, color=color, height=0.62)
        axis.bar_label(bars, [f"{v:.0%}" for v in values], padding=3, fontsize=9, color=INK)
        axis.set_yticks(range(len(top)), [processor.decode(i).strip() for i in top], fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25)
        axis.set_xticks([])
        axis.set_title(name, fontsize=10, color=INK)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=160, facecolor="white")


def main(file: str = "docs/contrast.png") -> None:
    """Find the question and draw it."""
    model, processor = load(MODEL)
    sample, found = find(model, processor)
    draw(sample, processor, found, Path(file))
    print(f"{sample.id}: {sample.prompt!r}, the truth is {sample.answer!r}; {file}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
