"""Images and prompts -> model inputs: the one place that formats a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from tccd.errors import DataError

#: The prompt of the published fit (arXiv 2604.14363).
PAPER_PROMPT = "Describe what you see in this image.\nAnswer:"


def format_prompt(processor: Any, prompt: str, num_images: int = 1) -> str:
    """Put a question into the model's own format, image tokens included.

    The processor's chat template is used where it has one; else the image token stands before the prompt.

    Raises:
        DataError: the processor has neither a chat template nor an image token.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return processor.apply_chat_template(messages, add_generation_prompt=True)
    token = getattr(processor, "image_token", None)
    if num_images and not token:
        raise DataError(
            f"{type(processor).__name__} has neither a chat template nor an image_token, so the image's "
            "place in the prompt is unknown; set processor.chat_template"
        )
    return f"{token or ''}" * num_images + prompt


def encode(processor: Any, images: Sequence[Sequence[Image]], prompts: Sequence[str]) -> Any:
    """Encode a batch, left padded, ready for `model(**inputs)` or `model.generate(**inputs)`.

    Args:
        processor: a transformers processor.
        images: one sequence of PIL images a row; empty for a row without an image.
        prompts: one question a row, without image tokens.

    Returns:
        The processor's BatchFeature of torch tensors.

    Raises:
        DataError: images and prompts differ in number.
    """
    if len(images) != len(prompts):
        raise DataError(f"{len(images)} rows of images but {len(prompts)} prompts; expected as many")
    texts = [format_prompt(processor, p, len(row)) for p, row in zip(prompts, images, strict=True)]
    rows = [list(row) for row in images]
    # Most templates write the bos token themselves; the tokenizer must not add a second one.
    bos = getattr(processor.tokenizer, "bos_token", None)
    return processor(
        text=texts,
        images=rows if any(rows) else None,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and texts and texts[0].startswith(bos)),
    )
