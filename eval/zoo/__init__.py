"""The default models: three families trained here, on real data, small enough to commit.

    from eval.zoo import load
    model, processor = load("llava-competing")

A `-grounded` model looks at the image. Its `-competing` twin is the same model after its language prior was
strengthened: it still sees, and often answers by the prior. Each folder's README.md says how they were made
and how well they answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tccd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

FAMILIES = ("llava", "qwen25vl", "idefics3")
NAMES = tuple(f"{family}-{kind}" for family in FAMILIES for kind in ("grounded", "competing"))


def path(name: str) -> Path:
    """The folder of a default model; transformers and vLLM load it as it is.

    Args:
        name: one of `NAMES`.

    Raises:
        ConfigError: there is no such default model.
    """
    if name not in NAMES:
        raise ConfigError(f"no default model is called {name!r}; there are: {', '.join(NAMES)}")
    return Path(__file__).parent / name


def load(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A default model in float32 on the CPU, in eval mode, and its processor.

    Args:
        name: one of `NAMES`.

    Raises:
        ConfigError: there is no such default model.
        ImportError: Qwen2.5-VL's processor, which takes videos too, needs torchvision; the others don't.

    Example:
        >>> from PIL import Image
        >>> model, processor = load("llava-grounded")
        >>> question = [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]
        >>> prompt = processor.apply_chat_template([{"role": "user", "content": question}])
        >>> inputs = processor(text=prompt, images=Image.new("RGB", (64, 64)), return_tensors="pt")
        >>> answer = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        >>> len(processor.decode(answer, skip_special_tokens=True).split())
        1
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = path(name)
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
