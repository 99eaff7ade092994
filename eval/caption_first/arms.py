"""The arms of the first claim: what each says about a picture, at an equal number of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.caption_first.facts import Scene, rebuilt
from eval.caption_first.model import Learner, Text

#: Text tokens about a picture in one step.
TOKENS = 40
NAMES = {
    "caption+vqa": "captions and the data's questions, half of the tokens each",
    "caption": "captions only",
    "caption+rebuilt": "captions and questions that a rule makes of the caption, half of the tokens each",
    "vqa": "the data's questions only",
}


@dataclass(frozen=True)
class Speaker:
    """Makes texts about scenes.

    Attributes:
        learner: whose tokens they are of.
        questions: all question strings.
    """

    learner: Learner
    questions: Sequence[str]

    def caption(self, scene: Scene) -> Text:
        """The caption, all of it to be learnt."""
        return Text((*self.learner.ids(scene.caption), self.learner.words.eos_token_id))

    def asked(self, question: str, answer: str, before: str = "") -> Text:
        """A question, whose answer is to be learnt; behind a caption, where one is written."""
        given = self.learner.ids(f"{before} . {question}" if before else question)
        return Text((*given, *self.learner.ids(answer), self.learner.words.eos_token_id), first=len(given))

    def about(self, arm: str, scene: Scene, draw: random.Random) -> list[Text]:
        """Texts about a scene that come to about `TOKENS` tokens.

        Args:
            arm: one of `NAMES`.
            scene: that they are about.
            draw: of the questions.
        """
        pairs = rebuilt(self.questions, scene) if arm == "caption+rebuilt" else [
            (sample.prompt, str(sample.answer)) for sample in scene.samples
        ]  # fmt: skip
        captioned = TOKENS * {"caption": 1.0, "vqa": 0.0}.get(arm, 0.5)
        found: list[Text] = []
        fill(found, captioned, lambda: self.caption(scene))
        fill(found, TOKENS - captioned, lambda: self.asked(*draw.choice(pairs)))
        return found

    def written(self, scenes: Sequence[Scene], draw: random.Random) -> list[Text]:
        """Text-only question answering over written captions, about `TOKENS` tokens."""
        found: list[Text] = []

        def one() -> Text:
            scene = draw.choice(scenes)
            question, answer = draw.choice(rebuilt(self.questions, scene))
            return self.asked(question, answer, scene.caption)

        fill(found, TOKENS, one)
        return found


def fill(found: list[Text], tokens: float, make: Callable[[], Text]) -> None:
    """Append texts until they come to so many tokens; the last one may go beyond."""
    spent = 0
    while spent < tokens:
        found.append(make())
        spent += len(found[-1].ids)
