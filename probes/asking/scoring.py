"""What counts as a right answer: the next token, among the choices or the whole vocabulary, or a short text."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tccd.data import Sample
from tccd.errors import DataError
from tccd.inputs import format_prompt

#: Tokens beyond the longest right answer that a generated answer may take: a longer text is a wrong one.
SLACK = 4


@dataclass(frozen=True)
class Target:
    """How one sample is scored.

    Attributes:
        answer: the right answer as `Scorer.read`, or of a generated text `normalised`, gives it.
        labels: what may be answered; the choices, or the right answer alone where the vocabulary competes.
        tokens: token ids of each label's forms (bare, behind a space); empty where the answer is generated.
        is_open: the whole vocabulary competes.
    """

    answer: str
    labels: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    is_open: bool

    @property
    def is_generated(self) -> bool:
        """Whether the answer is a text to generate, as it is no single token."""
        return not self.tokens


class Scorer:
    """Resolves answers and choices to the tokens that would really continue the prompt.

    Whether a label is bare or behind a space is up to tokenizer and model, and guessing it silently costs whole
    results: each form that is one token behind the formatted prompt counts for its label.

    Args:
        processor: the model's processor.

    Attributes:
        forms: by label, the token id of each form that is one token, for the report.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._known: dict[tuple[str, str], dict[str, int | None]] = {}
        self._words: dict[int, str] = {}
        self.forms: dict[str, dict[str, int | None]] = {}

    def target(self, sample: Sample, generate: bool = False) -> Target:
        """How a sample is scored.

        Args:
            sample: a question with its answer.
            generate: whether an open answer is generated even if it is one token.

        Raises:
            DataError: no answer, a choice that is not one token, or choices that are the same token.
        """
        if sample.answer is None:
            raise DataError(f"sample {sample.id} has no answer, so there is nothing to score")
        if sample.choices is None:
            tokens = self._tokens(sample, sample.answer)
            if generate or not tokens:
                text = normalised(sample.answer)
                return Target(text, (text,), (), True)
            return Target(sample.answer, (sample.answer,), (tokens,), True)
        found = [self._tokens(sample, choice) for choice in sample.choices]
        for choice, tokens in zip(sample.choices, found, strict=True):
            if not tokens:
                raise DataError(
                    f"sample {sample.id}: the choice {choice!r} is not one token of this model's, neither bare "
                    "nor behind a space, and the next token is what is scored; label the choices with letters"
                )
        every = [token for tokens in found for token in tokens]
        if len(set(every)) < len(every):
            raise DataError(
                f"sample {sample.id}: choices {list(sample.choices)} share tokens ({found}), and the next token "
                "can't tell them apart; label them with letters"
            )
        return Target(sample.answer, sample.choices, tuple(found), False)

    def read(self, goals: Sequence[Target], logits: Tensor) -> list[str]:
        """The answers that next-token logits give.

        Args:
            goals: one a row, none of them generated.
            logits: shape (rows, vocabulary).
        """
        logits = logits.float().cpu()
        best = logits.argmax(-1).tolist()
        return [self._pick(goal, logits[i], best[i]) for i, goal in enumerate(goals)]

    def _pick(self, goal: Target, logits: Tensor, best: int) -> str:
        if goal.is_open:
            return goal.answer if best in goal.tokens[0] else self.word(best)
        scores = [max(float(logits[token]) for token in tokens) for tokens in goal.tokens]
        return goal.labels[scores.index(max(scores))]

    def word(self, token: int) -> str:
        """A token as text."""
        if token not in self._words:
            self._words[token] = self._tokenizer.decode([token]).strip()
        return self._words[token]

    def length(self, sample: Sample) -> int:
        """Tokens of the sample's answer behind its prompt."""
        prompt = format_prompt(self._processor, sample.prompt)
        return len(self._ids(f"{prompt} {sample.answer}")) - len(self._ids(prompt))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tokens(self, sample: Sample, label: str) -> tuple[int, ...]:
        key = sample.prompt[-1:], label
        if key not in self._known:
            found = self._known[key] = self._find(sample, label)
            where = label if self.forms.get(label, found) == found else f"{label} (behind {sample.prompt[-1:]!r})"
            self.forms[where] = found
        return tuple(dict.fromkeys(token for token in self._known[key].values() if token is not None))

    def _find(self, sample: Sample, label: str) -> dict[str, int | None]:
        prompt = format_prompt(self._processor, sample.prompt)
        before = self._ids(prompt)
        found: dict[str, int | None] = {}
        for form, text in (("bare", prompt + label), ("space", f"{prompt} {label}")):
            after = self._ids(text)
            one = len(after) == len(before) + 1 and after[:-1] == before
            found[form] = after[-1] if one and after[-1] != self._tokenizer.unk_token_id else None
        return found


def normalised(text: str) -> str:
    """A short answer as exact match compares it: case, punctuation, articles and runs of spaces left out.

    As SQuAD's evaluation does (Rajpurkar et al., EMNLP 2016). An answer of nothing else stays as it is.

    Example:
        >>> normalised(" The  red Circle. ")
        'red circle'
    """
    bare = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or " ".join(text.casefold().split())


def targets(processor: Any, samples: Sequence[Sample]) -> tuple[Scorer, list[Target]]:
    """The scorer and each sample's target.

    Where any open answer is more than one token all open answers are generated: one rule for all of them.

    Raises:
        DataError: no sample, one that can't be scored, or the same right answer for all.
    """
    if not samples:
        raise DataError("no samples to score; the data source is empty or the limit is 0")
    scorer = Scorer(processor)
    found = [scorer.target(sample) for sample in samples]
    if any(goal.is_generated for goal in found):
        found = [scorer.target(sample, generate=True) for sample in samples]
    answers = {goal.answer for goal in found}
    if len(answers) == 1 and len(found) > 1:
        raise DataError(
            f"all {len(found)} right answers are {answers.pop()!r}: a model that says nothing else is always "
            "right, so accuracy over one class measures nothing; give data with several answers"
        )
    return scorer, found


def describe(scorer: Scorer, goals: Sequence[Target], samples: Sequence[Sample]) -> dict[str, Any]:
    """What a report says of scoring: how many samples are scored how, each label's tokens, tasks of one class."""
    by_task: dict[str, set[str]] = {}
    for goal, sample in zip(goals, samples, strict=True):
        by_task.setdefault(sample.task or "all", set()).add(goal.answer)
    kinds = ["generated" if g.is_generated else "token" if g.is_open else "choices" for g in goals]
    return {
        "kinds": {kind: kinds.count(kind) for kind in ("choices", "token", "generated")},
        "labels": scorer.forms,
        "one_class_tasks": sorted(task for task, answers in by_task.items() if len(answers) == 1),
    }


def longest(scorer: Scorer, samples: Sequence[Sample], goals: Sequence[Target]) -> int:
    """Tokens that a generated answer may have; 0 where none is generated."""
    lengths = [scorer.length(s) for s, goal in zip(samples, goals, strict=True) if goal.is_generated]
    return max(lengths) + SLACK if lengths else 0
