"""What counts as a right answer: the next token, among the choices or the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tccd.data import Sample
from tccd.errors import DataError
from tccd.inputs import format_prompt


@dataclass(frozen=True)
class Target:
    """How one sample is scored.

    Attributes:
        answer: token id of the right answer's first token.
        choices: token ids that compete; None lets the whole vocabulary compete (an open answer).
    """

    answer: int
    choices: tuple[int, ...] | None

    def pick(self, logits: Tensor) -> int:
        """The token id chosen by these next-token logits, shape (vocabulary,)."""
        if self.choices is None:
            return int(logits.argmax())
        return self.choices[int(logits[torch.tensor(self.choices, device=logits.device)].argmax())]


class Scorer:
    """Resolves answers and choices to the tokens that would really continue the prompt.

    An answer's token is found by tokenizing the formatted prompt with the answer behind it: whether a label is
    bare or space-prefixed is the tokenizer's business, and guessing it silently costs whole results.

    Args:
        processor: the model's processor.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._known: dict[tuple[str, str], int] = {}

    def target(self, sample: Sample) -> Target:
        """How a sample is scored.

        Raises:
            DataError: no answer, an answer that is not one token where it is open, or choices that begin with
                the same token.
        """
        if sample.answer is None:
            raise DataError(f"sample {sample.id} has no answer, so there is nothing to score")
        if sample.choices is None:
            return Target(self._token(sample, sample.answer, whole=True), None)
        tokens = [self._token(sample, choice, whole=False) for choice in sample.choices]
        if len(set(tokens)) < len(tokens):
            raise DataError(
                f"sample {sample.id}: choices {list(sample.choices)} begin with the tokens {tokens}, and the next "
                "token can't tell them apart; label them with letters"
            )
        return Target(tokens[sample.choices.index(sample.answer)], tuple(tokens))

    def word(self, token: int) -> str:
        """A token as text."""
        return self._tokenizer.decode([token]).strip()

    def _token(self, sample: Sample, answer: str, whole: bool) -> int:
        key = sample.prompt[-1:], answer
        if key not in self._known:
            self._known[key] = self._continue(sample, answer, whole)
        return self._known[key]

    def _continue(self, sample: Sample, answer: str, whole: bool) -> int:
        def ids(text: str) -> list[int]:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]

        prompt = format_prompt(self._processor, sample.prompt)
        before = ids(prompt)
        for text in (prompt + answer, prompt + " " + answer):
            after = ids(text)
            new = after[len(before) :]
            if after[: len(before)] == before and new:
                if whole and len(new) > 1:
                    raise DataError(
                        f"sample {sample.id}: the open answer {answer!r} is {len(new)} tokens; the probe scores "
                        "the next token, so give choices with labels of one token"
                    )
                return new[0]
        raise DataError(
            f"sample {sample.id}: the tokenizer merges the answer {answer!r} into the prompt's last token, so no "
            "next token stands for it"
        )


def targets(processor: Any, samples: Sequence[Sample]) -> tuple[Scorer, list[Target]]:
    """The scorer and each sample's target.

    Raises:
        DataError: no sample, or one that can't be scored.
    """
    if not samples:
        raise DataError("no samples to score; the data source is empty or the limit is 0")
    scorer = Scorer(processor)
    return scorer, [scorer.target(sample) for sample in samples]
