"""Samples with their answers -> what a model is trained on: prompts, and behind each the tokens of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tccd.data import Sample
from tccd.data.records import cut
from tccd.errors import DataError
from tccd.inputs import encode, format_prompt

#: In a target's place: nothing is asked there.
IGNORED = -100


def answer_tokens(processor: Any, sample: Sample) -> list[int]:
    """The tokens of a sample's answer behind its prompt, and the token that ends it.

    An answer follows on a space, but for a prompt that ends in one or in a line break.

    Args:
        processor: the model's processor.
        sample: a question with its answer.

    Raises:
        DataError: it has no answer.
    """
    if not sample.answer:
        raise DataError(
            f"sample {cut(sample.id)} has no answer, and a branch is trained on answers; give data that has them"
        )
    tokenizer, prompt = processor.tokenizer, format_prompt(processor, sample.prompt)
    answer = sample.answer if prompt[-1:].isspace() else f" {sample.answer}"
    before, whole, alone = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer, answer)
    )
    # Where the answer's first letters would melt into the prompt's last token, they are taken by themselves.
    tokens = whole[len(before) :] if whole[: len(before)] == before else alone
    end = tokenizer.eos_token_id
    return [*tokens, *([] if end is None else [end])]


def check_answers(processor: Any, samples: Sequence[Sample]) -> int:
    """Refuse samples that a branch can't be trained on, before the first is.

    Returns:
        The most tokens that an answer has, the one that ends it included.

    Raises:
        DataError: a sample has no answer, or there is none.
    """
    if not samples:
        raise DataError("no samples to train on; the data source is empty")
    known: dict[tuple[str, str | None], int] = {}
    for sample in samples:
        key = sample.prompt[-1:], sample.answer
        if key not in known:
            known[key] = len(answer_tokens(processor, sample))
    return max(known.values())


def with_answers(model: Any, processor: Any, samples: Sequence[Sample]) -> tuple[dict[str, Any], Tensor]:
    """A batch of prompts with their answers.

    Args:
        model: a transformers model; it says what stands beside the token ids of what follows a prompt.
        processor: its processor.
        samples: questions with answers.

    Returns:
        The model's inputs, prompts padded on the left and answers on the right; and the answers, shape (batch,
        longest answer), `IGNORED` where one is over. They are the last columns of the ids.

    Raises:
        DataError: a sample has no answer, or its picture can't be read.
    """
    inputs = encode(processor, [[sample.image] for sample in samples], [sample.prompt for sample in samples])
    inputs = dict(inputs.to(model.device, model.dtype))
    answers = [answer_tokens(processor, sample) for sample in samples]
    longest = max(map(len, answers))
    wanted = torch.tensor([[*tokens, *[IGNORED] * (longest - len(tokens))] for tokens in answers])
    ids, rest = inputs.pop("input_ids"), inputs
    rest.setdefault("attention_mask", torch.ones_like(ids))
    for _ in range(longest):  # a token at a time, as `generate` does
        rest = model._update_model_kwargs_for_generation({}, rest, num_new_tokens=1)
    wanted = wanted.to(ids.device)
    real = wanted != IGNORED
    rest["attention_mask"][:, -longest:] *= real
    filler = processor.tokenizer.pad_token_id or 0
    return {"input_ids": torch.cat([ids, torch.where(real, wanted, filler)], 1), **rest}, wanted
