"""What routing can save at most, by arithmetic: the operations of a prefill, and the bytes of a cache.

No weights are needed. A multiplication and its addition count as two operations; attention is causal, so a query
has half of the keys on average; norms, rotations and softmax are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, from its config."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers config."""
        text = config.get_text_config()
        return cls(
            text.num_hidden_layers,
            text.hidden_size,
            text.intermediate_size,
            text.num_attention_heads,
            text.num_key_value_heads,
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            text.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer: four projections of attention, three of a gated network."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    def layer_operations(self, rows: int) -> int:
        """Of one layer on so many rows that attend among themselves."""
        return 2 * self.layer_weights * rows + 2 * self.heads * self.head_dim * rows * rows

    def column_bytes(self, width: int) -> int:
        """Of one column's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * width


#: LLaVA-1.5's decoders, as their configs have them.
LLAVA_1_5 = {
    "7B": Shape(32, 4096, 11008, 32, 32, 128, 32064),
    "13B": Shape(40, 5120, 13824, 40, 40, 128, 32064),
}


@dataclass(frozen=True)
class Limit:
    """What a route can save.

    Attributes:
        prefill: operations of the prefill over those of the plain model; the last column's logits alone.
        cache: bytes of keys and values after the prompt, over those of the plain model.
        plain_bytes, routed_bytes: of one prompt's keys and values.
        decode: bytes of weights and of keys and values that a step reads, over those of the plain model: what a
            step costs where memory is what it waits for.
    """

    prefill: float
    cache: float
    plain_bytes: int
    routed_bytes: int
    decode: float


def limit(
    shape: Shape, image: int, text: int, split: int, fuse: int, branch: bool, batch: int = 1, width: int = 2
) -> Limit:
    """By arithmetic.

    Args:
        shape: the decoder's sizes.
        image, text: tokens of the prompt.
        split, fuse: the route; `fuse` 0 where the image is withdrawn for good.
        branch: whether the image's rows run one layer of their own.
        batch: rows that share the weights in a decode step.
        width: bytes of a number.
    """
    n, routed = image + text, shape.layers - split - fuse
    whole = shape.layer_operations(n)
    head = 2 * shape.hidden * shape.vocabulary
    plain = shape.layers * whole + head
    ours = (split + fuse) * whole + routed * shape.layer_operations(text) + head
    ours += shape.layer_operations(image) if branch else 0
    one = shape.column_bytes(width)
    plain_bytes = shape.layers * n * one
    routed_bytes = plain_bytes - routed * image * one
    weights = width * (shape.layers * shape.layer_weights + shape.hidden * shape.vocabulary)
    return Limit(
        prefill=ours / plain,
        cache=routed_bytes / plain_bytes,
        plain_bytes=plain_bytes,
        routed_bytes=routed_bytes,
        decode=(weights + batch * routed_bytes) / (weights + batch * plain_bytes),
    )
