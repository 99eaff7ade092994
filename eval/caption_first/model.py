"""The model of every arm: an eye that sees, a language model that knows nothing yet, and rows of packed texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.caption_first.facts import Scene
from eval.zoo import load
from eval.zoo.build import FAMILIES
from eval.zoo.data import IGNORED
from eval.zoo.words import BOS

FAMILY = "idefics3"


@dataclass(frozen=True)
class Text:
    """A text behind an image, or behind nothing.

    Attributes:
        ids: its tokens, with what ends it.
        first: place of the first token that is to be learnt; those before it are given.
    """

    ids: tuple[int, ...]
    first: int = 0


class Learner:
    """An untrained Idefics3 with the vision tower of `idefics3-grounded`, which stays as it is.

    A pretrained eye and a language model to be taught is what training such a model begins with. The tower is
    frozen, so each picture passes it once.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.family = FAMILIES[FAMILY]
        self.model, self.processor = self.family.build()
        seeing, _ = load(f"{FAMILY}-grounded")
        self.family.vision(self.model).load_state_dict(self.family.vision(seeing).state_dict())
        self.family.vision(self.model).requires_grad_(False)
        self.words = self.processor.tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text."""
        return tuple(self.words(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def see(self, scenes: Sequence[Scene], batch: int = 64) -> Tensor:
        """What the tower makes of pictures, shape (scenes, patches, width)."""
        found = []
        for start in range(0, len(scenes), batch):
            images = [scene.samples[0].image for scene in scenes[start : start + batch]]
            pixels = self.family.pixels(self.processor, images)
            found.append(self.family.features(self.model, self.family.inputs(pixels)))
        return torch.cat(found)

    def prefix(self, scene: Scene) -> list[int]:
        """Tokens before a text that is about an image; all images have one size."""
        alone = self.processor(
            text=[BOS + self.family.image], images=[[scene.samples[0].image]], return_tensors="pt"
        )
        return alone["input_ids"][0].tolist()

    def hidden(
        self, prefix: Sequence[int], rows: Sequence[Sequence[Text]], seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states of rows of texts, each text seeing the prefix and itself alone, and what to predict.

        Args:
            prefix: tokens before each text; `BOS` alone where there is no image.
            rows: texts of each row.
            seen: what the tower made of each row's picture; None where there is none.

        Returns:
            States of shape (rows, length, hidden), and the token that each place should predict, IGNORED where
            none.
        """
        start = len(prefix)
        width = start + max(sum(len(text.ids) for text in row) for row in rows)
        ids = torch.full((len(rows), width), self.words.pad_token_id)
        ids[:, :start] = torch.tensor(prefix)
        where = torch.arange(start).repeat(len(rows), 1)
        where = F.pad(where, (0, width - start))
        segment, targets = torch.full((len(rows), width), -1), torch.full((len(rows), width), IGNORED)
        segment[:, :start] = 0
        for r, row in enumerate(rows):
            at = start
            for number, text in enumerate(row, 1):
                end = at + len(text.ids)
                ids[r, at:end] = torch.tensor(text.ids)
                where[r, at:end] = torch.arange(start, start + len(text.ids))
                segment[r, at:end] = number
                # The place before a token predicts it; the first text's first token follows the prefix.
                learnt = max(text.first, 1)
                targets[r, at + learnt - 1 : end - 1] = ids[r, at + learnt : end]
                if text.first == 0 and number == 1:
                    targets[r, start - 1] = text.ids[0]
                at = end
        own = segment[:, :, None] == segment[:, None, :]
        mask = (own | (segment == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
        embedded = self.model.get_input_embeddings()(ids)
        if seen is not None:
            image = self.model.model.connector(seen)
            embedded = embedded.clone()
            embedded[ids == self.model.config.image_token_id] = image.flatten(0, 1)
        states = self.model.model.text_model(
            inputs_embeds=embedded, attention_mask=mask[:, None], position_ids=where, use_cache=False
        ).last_hidden_state
        return states, targets

    def loss(self, prefix: Sequence[int], rows: Sequence[Sequence[Text]], seen: Tensor | None) -> Tensor:
        """Mean cross-entropy over the tokens that are to be learnt; arguments as for `hidden`."""
        states, targets = self.hidden(prefix, rows, seen)
        asked = targets != IGNORED
        return F.cross_entropy(self.model.lm_head(states[asked]), targets[asked])

    @torch.no_grad()
    def next(self, prefix: Sequence[int], texts: Sequence[Sequence[int]], seen: Tensor | None) -> list[int]:
        """The likeliest token behind each text, one a row; behind the prefix where a text is empty."""
        rows = [[Text(tuple(text))] if text else [] for text in texts]
        width = [len(prefix) + len(text) - 1 for text in texts]
        states, _ = self.hidden(prefix, rows, seen)
        return self.model.lm_head(states[torch.arange(len(texts)), width]).argmax(-1).tolist()

    def state(self) -> dict[str, Any]:
        """Weights, for `load`."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Set weights."""
        self.model.load_state_dict(state)
