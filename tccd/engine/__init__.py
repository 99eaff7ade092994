"""Second streams inside a transformers forward. Knows no bank, no settings and no family of models.

How it works, in the order to read it:

- `reference`: what a session asks of a reference, whatever its kind.
- `session`: one `generate` call or one `with` block. It runs each layer once, on the clean columns and the
  references' own columns together.
- `streams` and `twins`: references with columns of their own, and their keys and values, which ride at the end
  of the model's own cache; `stand_ins`: what they see in the place of columns that they do not run.
- `prefixes`: another picture's keys and values, computed once and kept.
- `exits`: references that leave the clean stream at a lower layer.
- `shadow` and `other_prompt`: the model's own forward a second time a step, on a prompt of other words.
- `packing` and `masks`: the columns `[clean | twin ...]` of one forward, which of them see which, and the cache
  that takes each to its place.
- `attention`: one call of transformers' attention function for the clean columns, one for each stream.
- `installation`: how the model is held while a session is open, and let go.
- `embeddings`: what the model makes of another picture before its first layer.
- `support`: what the engine is not exact for, refused before the first token.
"""

from tccd.engine.exits import EarlyExit
from tccd.engine.other_prompt import OtherPrompt
from tccd.engine.packing import Step
from tccd.engine.prefixes import KeptImage, Prefixes
from tccd.engine.reference import EMBEDDINGS, Part, Reference
from tccd.engine.session import Session
from tccd.engine.streams import Layout, StreamPart, Twin
from tccd.engine.twins import Erasure, MeanImage, OtherImage, Withheld

__all__ = [
    "EMBEDDINGS",
    "EarlyExit",
    "Erasure",
    "KeptImage",
    "Layout",
    "MeanImage",
    "OtherImage",
    "OtherPrompt",
    "Part",
    "Prefixes",
    "Reference",
    "Session",
    "Step",
    "StreamPart",
    "Twin",
    "Withheld",
]
