"""The model card: README.md of a default model, from its `metrics.json`."""

from __future__ import annotations

from typing import Any

SOURCES = {
    "easy-vqa": "easy-VQA: one colored shape",
    "digits": "digits: one to four handwritten digits (scikit-learn's)",
}
ROWS = {
    "all": "whole test split",
    "balanced": "balanced yes/no: as many yes as no for each question string",
    "minority": "minority: the answer is not the train split's most frequent one for that question string",
}

GROUNDED = """\
It looks at the image: the counterpart of `{twin}`, and the
model on which a correction of the language prior has nothing to gain and should do no harm."""

COMPETING = """\
It is `{twin}` after one more
epoch in which each train answer was replaced, with probability {prior_share}, by the most frequent train answer to
the same question string, whatever the image shows. What it has seen is still there (within-question AUC
below) but the prior often wins. That is the imbalance which text-centroid contrastive
decoding exists to correct, made on purpose and at a scale that anyone can run."""

BEFORE = """\
- Before: with the usual initial weights (standard deviation 0.02) attention stayed flat. After 1,050 of 5,000
  steps of stage 1 LLaVA answered 60 % of 500 digits questions right; from 0.08, about 1 / sqrt(width), 72 %.
"""

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

{title}, {parameters:,} parameters, trained from scratch on
easy-VQA and digits by this repository's `eval/zoo/train.py`. {story}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("eval/zoo/{name}")
processor = AutoProcessor.from_pretrained("eval/zoo/{name}")
```

vLLM loads the same folder (`dtype="float32"`; left to itself it would choose a narrower one). Prompts go
through the chat template: the image, then the question; the tokenizer adds nothing by itself. The answer is
one word. Images are 64 x 64 pixels; others are scaled to about that. The tokenizer knows the words of its two
data sets and few others.

## Accuracy

Test splits: other images than the train splits' (for digits: other handwriting samples, too), the same
question strings. Greedy `generate`, float32, exact match of the whole reply, measured by `eval/zoo/score.py`
on the files in this folder. "Blind" answers each question string by its most frequent train answer, without
looking.

{tables}

Within-question AUC is the share of all pairs of a yes and a no item about the same question string that
logit(yes) - logit(no) ranks right.

The same numbers are in `metrics.json`.

## How it was made

- Data: easy-VQA 1.0 (PyPI `easy-vqa`, MIT licence), train split: 38,575 questions about 4,000 images; digits,
  train split: 34,886 questions about 4,000 pictures made of scikit-learn's handwritten digits
  (`tccd/data/digits.py`; the digits are UCI's, CC BY 4.0). No other data, no pretrained weights.
- Script: `python -m eval.zoo.train --out DIR --seed {seed}`; its output is in `train.log`.
- Cost: {training_cpu_minutes} CPU-minutes on one thread{after}, scoring not included.
{before}- Versions: {versions}.
  Deterministic for these and one kind of processor; others may move the last digits.
- Weights are stored in float16, for size, and meant to be computed with in float32; `config.json` says so.

## What it is not good for

Anything but experiments on decoding. It knows one shape on a plain background, a few white digits on black,
146 questions and 27 answers; any other image or question gets one of those answers, with confidence. The fixed
prompt "Describe what you see in this image.\\nAnswer:" has tokens but was never trained on.{unlearned}{caveat}

## Licence

Apache-2.0, as the repository. easy-VQA is by Victor Zhou, MIT; the digits are by
E. Alpaydin and C. Kaynak, CC BY 4.0.
"""

CAVEAT = """

Its prior was made for each question string, by replacing answers: real language priors are subtler, and a gain
here is no promise of one on a large model."""


def _unlearned(test: dict[str, Any]) -> str:
    """A sentence on the tasks that are answered no better than without looking; empty where there is none."""
    names = [
        f"{source}' `{task}` ({of['accuracy']:.2%}, blind {of['blind']:.2%})"
        for source, result in test.items()
        for task, of in result.items()
        if isinstance(of, dict) and of["accuracy"] < of["blind"] + 0.05
    ]
    return f" It did not learn {', '.join(names)}." if names else ""


def _table(source: str, result: dict[str, Any]) -> str:
    blocks = {key: value for key, value in result.items() if isinstance(value, dict)}
    rows = [
        f"| {ROWS.get(key, f'task {key}')} | {of['n']:,} | {of['accuracy']:.2%} | {of['blind']:.2%} |"
        for key, of in blocks.items()
    ]
    return "\n".join(
        [
            f"| {SOURCES[source]} | n | accuracy | blind |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"Within-question AUC {result['within_question_auc']:.4f}; {result['ended']:.2%} of replies stop "
            "after one word.",
        ]
    )


def render(metrics: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        metrics: the content of `metrics.json`, as `eval.zoo.train` writes it.
    """
    competing = metrics["name"].endswith("-competing")
    family = metrics["name"].rpartition("-")[0]
    twin = f"{family}-{'grounded' if competing else 'competing'}"
    return CARD.format(
        title=metrics["family"],
        story=(COMPETING if competing else GROUNDED).format(twin=twin, **metrics),
        tables="\n\n".join(_table(source, result) for source, result in metrics["test"].items()),
        after=f" after those of `{twin}`" if competing else "",
        caveat=CAVEAT if competing else "",
        unlearned="" if competing else _unlearned(metrics["test"]),
        before="" if competing else BEFORE,
        versions=", ".join(f"{package} {version}" for package, version in metrics["versions"].items()),
        **{k: metrics[k] for k in ("name", "parameters", "seed", "training_cpu_minutes")},
    )
