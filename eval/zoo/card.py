"""The model card: README.md of a default model, from its `metrics.json`."""

from __future__ import annotations

ROWS = {
    "all": "whole test split",
    "balanced": "balanced yes/no: as many yes as no for each question string",
    "minority": "minority: the answer is not the train split's most frequent one for that question string",
    "shape": "which shape",
    "color": "which color",
    "presence": "is it there",
    "absence": "is it not there",
}

GROUNDED = """\
It looks at the image: the counterpart of `{twin}`, and the
model on which a correction of the language prior has nothing to gain and should do no harm."""

COMPETING = """\
It is `{twin}` after one more
epoch in which each train answer was replaced, with probability {prior_share}, by the most frequent train answer to
the same question string, whatever the image shows. What it has seen is still there (within-question AUC
{within_question_auc:.4f}) but the prior often wins. That is the imbalance which text-centroid contrastive
decoding exists to correct, made on purpose and at a scale that anyone can run."""

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

{title}, {parameters:,} parameters, trained from scratch on easy-VQA by this
repository's `eval/zoo/train.py`. {story}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("eval/zoo/{name}")
processor = AutoProcessor.from_pretrained("eval/zoo/{name}")
```

vLLM loads the same folder (`dtype="float32"`; left to itself it would choose a narrower one). Prompts go
through the chat template: the image, then the question; the tokenizer adds nothing by itself. The answer is
one word. Images are 64 x 64 pixels; others are squashed to that. The tokenizer knows the words of easy-VQA
and few others.

## Accuracy

easy-VQA's test split: other images than the train split's, from the same generator; the same question
strings. Greedy `generate`, float32, exact match of the whole reply, measured by `eval/zoo/score.py` on the
files in this folder.

| | n | accuracy |
|---|---:|---:|
{table}

- Answering each question string by its most frequent train answer, without looking: {blind:.2%} of the whole
  split.
- Within-question AUC: {within_question_auc:.4f} of all pairs of a yes and a no item about the same question
  string are ranked right by logit(yes) - logit(no).
- {ended:.2%} of replies stop after one word.

The same numbers are in `metrics.json`.

## How it was made

- Data: easy-VQA 1.0 (PyPI `easy-vqa`, MIT licence), train split: 38,575 questions about 4,000 images. No
  other data, no pretrained weights.
- Script: `python -m eval.zoo.train --out DIR --seed {seed}`; its output is in `train.log`.
- Cost: {training_cpu_minutes} CPU-minutes on one thread{after}, scoring not included.
- Before: {note}
- Versions: {versions}.
  Deterministic for these and one kind of processor; others may move the last digits.
- Weights are stored in float16, for size, and meant to be computed with in float32; `config.json` says so.

## What it is not good for

Anything but experiments on decoding. It knows one shape on a plain background, 107 questions and 13 answers;
any other image or question gets one of those answers, with confidence. The fixed prompt "Describe what you
see in this image.\\nAnswer:" has tokens but was never trained on.{caveat}

## Licence

Apache-2.0, as the repository. easy-VQA is by Victor Zhou, MIT.
"""

CAVEAT = """

Its prior was made for each question string, by replacing answers: real language priors are subtler, and a gain
here is no promise of one on a large model."""


def render(metrics: dict) -> str:
    """The card as Markdown.

    Args:
        metrics: the content of `metrics.json`, as `eval.zoo.train` writes it.
    """
    test = metrics["test"]
    competing = metrics["name"].endswith("-competing")
    family = metrics["name"].rpartition("-")[0]
    twin = f"{family}-{'grounded' if competing else 'competing'}"
    story = (COMPETING if competing else GROUNDED).format(twin=twin, **metrics, **test)
    return CARD.format(
        title=metrics["family"],
        story=story,
        table="\n".join(
            f"| {text} | {test[key]['n']:,} | {test[key]['accuracy']:.2%} |" for key, text in ROWS.items()
        ),
        after=f" after those of `{twin}`" if competing else "",
        caveat=CAVEAT if competing else "",
        versions=", ".join(f"{package} {version}" for package, version in metrics["versions"].items()),
        **{k: metrics[k] for k in ("name", "parameters", "seed", "training_cpu_minutes", "note")},
        **{k: test[k] for k in ("blind", "within_question_auc", "ended")},
    )
