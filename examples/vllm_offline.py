"""Contrast per request inside vLLM. Run: TCCD_BANK=bank.safetensors python -m examples.vllm_offline MODEL"""

from __future__ import annotations

import sys

from PIL import Image
from vllm import LLM, SamplingParams


def main(model: str) -> None:
    """Ask one question twice in one batch: plainly, and contrasted."""
    llm = LLM(model=model, enforce_eager=True)
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": "what color is the shape?"}]
    chat = [{"role": "user", "content": content}]
    plain = SamplingParams(temperature=0, max_tokens=4)
    contrasted = SamplingParams(temperature=0, max_tokens=4, extra_args={"tccd_alpha_cd": 1.0})
    answers = llm.chat([chat, chat], [plain, contrasted])
    for name, answer in zip(("plain", "contrasted"), answers, strict=True):
        print(f"{name}: {answer.outputs[0].text.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
