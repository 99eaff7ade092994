"""Which positions of a prompt are vision, and which are the text tail.

Everything is read from token ids and the model's config. The paper's layout is
`[system tokens][vision tokens][text tail]`; the tail is every token after the last vision token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tccd.errors import ConfigError, ModalityError

Modality = Literal["text", "vision"]
MODALITIES: tuple[Modality, ...] = ("text", "vision")

#: Segments of each modality. Text: the paper's four. Vision: the vision tokens themselves, or the paper's
#: contiguous first-to-last span, which also holds row and column markers between them (Idefics3).
SEGMENTS: dict[Modality, tuple[str, ...]] = {
    "text": ("all", "question", "options", "system"),
    "vision": ("tokens", "span"),
}

#: Share of the tail that the paper calls the question; the rest is the options.
QUESTION_SHARE = 0.7

_ID_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def vision_token_ids(config: Any) -> tuple[int, ...]:
    """The token ids that stand for image and video features in a prompt.

    Args:
        config: a transformers model config; a part of it is asked where it names none itself (Phi-4-multimodal's
            vision config).

    Returns:
        The ids, ascending, without repeats.

    Raises:
        ModalityError: the config names no vision token.
    """
    ids = _named_ids(config)
    for part in sorted(getattr(config, "sub_configs", ())):
        ids = ids or _named_ids(getattr(config, part, None))
    if not ids:
        raise ModalityError(
            f"{type(config).__name__} names no vision token (looked for {', '.join(_ID_NAMES)}); "
            "tccd needs a vision-language model that marks its image positions by a token id"
        )
    return ids


def _named_ids(config: Any) -> tuple[int, ...]:
    found = {getattr(config, name, None) for name in _ID_NAMES}
    return tuple(sorted(i for i in found if isinstance(i, int) and i >= 0))


@dataclass(frozen=True)
class ModalityMap:
    """Where each modality stands in a batch of prompts. All masks are boolean, shape (batch, sequence).

    Attributes:
        real: positions that are not padding.
        vision: the vision tokens themselves.
        tail: every real position after the row's last vision token; empty in a row without an image.
    """

    real: Tensor
    vision: Tensor
    tail: Tensor

    @property
    def has_vision(self) -> Tensor:
        """Rows with at least one vision token, shape (batch,)."""
        return self.vision.any(-1)

    @property
    def span(self) -> Tensor:
        """The paper's contiguous reading of vision: first to last vision token, markers between included."""
        started = self.vision.cumsum(-1) > 0
        ended = self.vision.flip(-1).cumsum(-1).flip(-1) == 0
        return started & ~ended & self.real

    @property
    def system(self) -> Tensor:
        """Real positions before the row's first vision token; empty in a row without an image."""
        return (self.vision.cumsum(-1) == 0) & self.real & self.has_vision[:, None]

    def segment(self, modality: Modality, name: str | None = None) -> Tensor:
        """The positions of one segment of one modality.

        Args:
            modality: "text" or "vision".
            name: one of `SEGMENTS[modality]`; the first of them when None.

        Returns:
            Boolean mask of shape (batch, sequence).

        Raises:
            ConfigError: unknown modality or segment.
        """
        if modality not in SEGMENTS:
            raise ConfigError(f"unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}")
        name = SEGMENTS[modality][0] if name is None else name
        if name not in SEGMENTS[modality]:
            raise ConfigError(
                f"unknown {modality} segment {name!r}; expected one of {', '.join(SEGMENTS[modality])}"
            )
        if modality == "vision":
            return self.vision if name == "tokens" else self.span
        if name == "system":
            return self.system
        if name == "all":
            return self.tail
        rank = self.tail.cumsum(-1)
        question = torch.floor(self.tail.sum(-1, keepdim=True) * QUESTION_SHARE)
        return self.tail & ((rank <= question) if name == "question" else (rank > question))


def modality_map(
    input_ids: Tensor,
    vision_ids: tuple[int, ...],
    attention_mask: Tensor | None = None,
    has_images: bool = False,
) -> ModalityMap:
    """Find the vision positions and the text tail of each row.

    Args:
        input_ids: shape (batch, sequence); left or right padded.
        vision_ids: from `vision_token_ids`.
        attention_mask: shape (batch, sequence), 1 where real; None when nothing is padded.
        has_images: the prompt came with pixel values, so vision tokens have to be there.

    Raises:
        ModalityError: wrong shapes, or images without a vision token in the prompt.
    """
    if input_ids.ndim != 2:
        raise ModalityError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, sequence)")
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask.shape == input_ids.shape:
        real = attention_mask.bool()
    else:
        raise ModalityError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected {tuple(input_ids.shape)}"
        )
    wanted = torch.tensor(vision_ids, device=input_ids.device, dtype=input_ids.dtype)
    vision = torch.isin(input_ids, wanted) & real
    if has_images and not bool(vision.any()):
        raise ModalityError(
            f"the prompt has an image but none of its vision tokens {list(vision_ids)}; "
            "put the image token into the prompt (processors with a chat template do it for you)"
        )
    after = vision.flip(-1).cumsum(-1).flip(-1) == 0
    tail = after & real & vision.any(-1, keepdim=True)
    return ModalityMap(real=real, vision=vision, tail=tail)
