"""How well a model answers easy-VQA, asked as a user would: chat template, processor, greedy `generate`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from eval.zoo.data import Item, Split


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


def prompt(processor: ProcessorMixin, question: str) -> str:
    """The question behind one image, in the model's chat template."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


@torch.inference_mode()
def ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: list[Item],
    images: dict[int, Image.Image],
    batch: int = 64,
) -> list[Reply]:
    """Greedy replies to the items, in their order."""
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    replies: list[Reply] = []
    for start in range(0, len(items), batch):
        chunk = items[start : start + batch]
        inputs = processor(
            text=[prompt(processor, item.question) for item in chunk],
            images=[images[item.image] for item in chunk],
            padding=True,
            return_tensors="pt",
        )
        output = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        ended = tokens[:, 1] == processor.tokenizer.eos_token_id
        margins = output.logits[0][:, yes] - output.logits[0][:, no]
        replies += map(Reply, texts, ended.tolist(), margins.tolist())
    return replies


def balanced(items: list[Item]) -> list[int]:
    """Indices of as many yes as no items for each question string, first come: the prior gets half."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"yes": [], "no": []})
    for i, item in enumerate(items):
        if item.answer in ("yes", "no"):
            found[item.question][item.answer].append(i)
    kept = []
    for group in found.values():
        count = min(map(len, group.values()))
        kept += group["yes"][:count] + group["no"][:count]
    return sorted(kept)


def within_question_auc(items: list[Item], margins: list[float]) -> float:
    """Share of (yes item, no item) pairs about one question string that the margin ranks right.

    The prior is constant within a question string, so that this tells what the model still knows of the image
    even where its answer follows the prior. Ties count half.
    """
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"yes": [], "no": []})
    for item, margin in zip(items, margins, strict=True):
        if item.answer in ("yes", "no"):
            groups[item.question][item.answer].append(margin)
    right = pairs = 0.0
    for group in groups.values():
        gap = torch.tensor(group["yes"])[:, None] - torch.tensor(group["no"])[None, :]
        right += ((gap > 0).sum() + 0.5 * (gap == 0).sum()).item()
        pairs += gap.numel()
    return right / pairs


def score(model: PreTrainedModel, processor: ProcessorMixin, split: Split, prior: dict[str, str]) -> dict:
    """Accuracies with their n, on a whole split.

    Args:
        model: the model.
        processor: its processor.
        split: what to ask.
        prior: each question string's most frequent answer in the train split.

    Returns:
        `all`, `balanced` (see `balanced`), `minority` (items whose answer is not the prior's) and one entry
        for each task, each with `n` and `accuracy`; `blind` (the prior's own accuracy), `ended` (share of
        replies of one token) and `within_question_auc`.
    """
    replies = ask(model, processor, split.items, split.images)
    right = [reply.text == item.answer for reply, item in zip(replies, split.items, strict=True)]
    chosen = {
        "all": range(len(right)),
        "balanced": balanced(split.items),
        "minority": [i for i, item in enumerate(split.items) if prior[item.question] != item.answer],
    }
    for task in ("shape", "color", "presence", "absence"):
        chosen[task] = [i for i, item in enumerate(split.items) if item.task == task]
    result: dict = {
        name: {"n": len(rows), "accuracy": round(sum(right[i] for i in rows) / len(rows), 4)}
        for name, rows in chosen.items()
    }
    result["blind"] = round(1 - len(chosen["minority"]) / len(right), 4)
    result["ended"] = round(sum(reply.ended for reply in replies) / len(replies), 4)
    result["within_question_auc"] = round(within_question_auc(split.items, [r.margin for r in replies]), 4)
    return result
