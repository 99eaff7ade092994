"""Contrast with the image withheld: no bank, nothing fitted. Run: python -m examples.contrast"""

from __future__ import annotations

from eval.zoo import load
from tccd import Contrast, no_vision
from tccd.data import load_samples
from tccd.inputs import encode

#: A default model with a strong language prior; any image-text-to-text model of transformers takes its place.
model, processor = load("llava-competing")
samples = load_samples("easy-vqa", split="test", limit=200, seed=0)
inputs = encode(processor, [[s.image] for s in samples], [s.prompt for s in samples])

contrast = Contrast(model, no_vision(), alpha_cd=0.5, beta=0.1)
plain = model.generate(**inputs, max_new_tokens=1, do_sample=False)
contrasted = model.generate(**inputs, max_new_tokens=1, do_sample=False, custom_generate=contrast)

for name, tokens in (("plain", plain), ("contrasted", contrasted)):
    answers = processor.batch_decode(tokens[:, -1:], skip_special_tokens=True)
    right = sum(answer.strip() == sample.answer for answer, sample in zip(answers, samples, strict=True))
    print(f"{name}: {right} of {len(samples)} right")
