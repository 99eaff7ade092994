"""How well a model answers, asked as a user would: chat template, processor, greedy `generate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from eval.datasets.easy_vqa import balanced, minority
from tccd.data import Sample
from tccd.inputs import encode


@dataclass(frozen=True)
class Reply:
    """What a model said to one item.

    Attributes:
        text: the generated words.
        ended: generation stopped by itself, right after one token.
        margin: logit of "yes" less that of "no" at the answer position.
    """

    text: str
    ended: bool
    margin: float


@torch.inference_mode()
def ask(
    model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[Sample], batch: int = 64
) -> list[Reply]:
    """Greedy replies to the samples, in their order."""
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    replies: list[Reply] = []
    for start in range(0, len(samples), batch):
        chunk = samples[start : start + batch]
        inputs = encode(processor, [[sample.image] for sample in chunk], [sample.prompt for sample in chunk])
        output = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        ended = tokens[:, 1] == processor.tokenizer.eos_token_id
        margins = output.logits[0][:, yes] - output.logits[0][:, no]
        replies += map(Reply, texts, ended.tolist(), margins.tolist())
    return replies


def within_question_auc(samples: Sequence[Sample], margins: Sequence[float]) -> float:
    """Share of (yes sample, no sample) pairs about one question string that the margin ranks right.

    The prior is constant within a question string, so that this tells what the model still knows of the image
    even where its answer follows the prior. Ties count half.
    """
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"yes": [], "no": []})
    for sample, margin in zip(samples, margins, strict=True):
        if sample.answer in ("yes", "no"):
            groups[sample.prompt][sample.answer].append(margin)
    right = pairs = 0.0
    for group in groups.values():
        gap = torch.tensor(group["yes"])[:, None] - torch.tensor(group["no"])[None, :]
        right += ((gap > 0).sum() + 0.5 * (gap == 0).sum()).item()
        pairs += gap.numel()
    return right / pairs


def score(
    model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[Sample], prior: Mapping[str, str]
) -> dict[str, Any]:
    """Accuracies with their n, on a whole split.

    Args:
        model: the model.
        processor: its processor.
        samples: what to ask.
        prior: each question string's most frequent answer in the train split.

    Returns:
        `all`, `balanced` and `minority` (see `eval.datasets.easy_vqa`) and one entry for each task, each with
        `n`, `accuracy` and `blind` (the prior's own accuracy); `ended` (share of replies of one token) and
        `within_question_auc`.
    """
    replies = ask(model, processor, samples)
    right = {s.id: reply.text == s.answer for reply, s in zip(replies, samples, strict=True)}
    chosen = {"all": samples, "balanced": balanced(samples), "minority": minority(samples, prior)}
    for task in dict.fromkeys(str(s.task) for s in samples):
        chosen[task] = [s for s in samples if s.task == task]
    result: dict[str, Any] = {
        name: {
            "n": len(part),
            "accuracy": round(sum(right[s.id] for s in part) / len(part), 4),
            "blind": round(sum(prior[s.prompt] == s.answer for s in part) / len(part), 4),
        }
        for name, part in chosen.items()
    }
    result["ended"] = round(sum(reply.ended for reply in replies) / len(replies), 4)
    result["within_question_auc"] = round(within_question_auc(samples, [r.margin for r in replies]), 4)
    return result
