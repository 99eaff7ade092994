"""One batch of questions, and the references that are made for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from PIL.Image import Image

from probes.asking.forward import encode_samples
from tccd.data import Sample
from tccd.engine import Reference


@dataclass(frozen=True)
class Asked:
    """A batch of questions with the pictures that they are asked about.

    Attributes:
        model: the model.
        processor: its processor.
        samples: one question a row.
        images: what is shown, one a row.
        new_tokens: tokens that each answer may have.
    """

    model: Any
    processor: Any
    samples: Sequence[Sample]
    images: Sequence[Image]
    new_tokens: int = 0
    _made: dict[int, Reference] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """As the model takes it; raises as `probes.asking.forward.encode_samples` does."""
        return encode_samples(self.model, self.processor, self.samples, self.images, self.new_tokens)

    def reference(self, source: Source) -> Reference:
        """The reference of this batch; made once."""
        if isinstance(source, Reference):
            return source
        if id(source) not in self._made:
            self._made[id(source)] = source(self)
        return self._made[id(source)]


#: A reference, or what makes one for a batch where it depends on the batch's pictures or words.
Source: TypeAlias = Reference | Callable[[Asked], Reference]
