"""Second streams inside a transformers forward. Knows no bank, no settings and no family of models.

How it works, in the order to read it:

- `reference`: what a second stream does otherwise than the clean one, and from which layer on.
- `session`: one `generate` call or one `with` block. It runs each layer once, on the clean columns and the
  references' own columns together.
- `packing` and `masks`: the columns `[clean | reference ...]` of one forward, which of them see which, and the
  cache that takes each to its place.
- `streams`: the references' keys and values, which ride at the end of the model's own cache.
- `installation`: how the model is held while a session is open, and let go.
- `embeddings`: what the model makes of another picture before its first layer.
- `support`: what the engine is not exact for, refused before the first token.
"""

from tccd.engine.packing import Step
from tccd.engine.reference import EMBEDDINGS, Erasure, Layout, OtherImage, Reference, Withheld
from tccd.engine.session import Session

__all__ = ["EMBEDDINGS", "Erasure", "Layout", "OtherImage", "Reference", "Session", "Step", "Withheld"]
