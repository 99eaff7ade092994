"""Model folders that are damaged, incomplete, or of something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.banks import DEEP
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "models"
WEIGHTS, CONFIG = "model.safetensors", "config.json"

Change = Callable[[Path], Any]


def _remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def _cut(name: str, keep: float) -> Change:
    def change(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * keep)])

    return change


def _config(*path: str, to: Any, name: str = CONFIG) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        at = config
        for key in path[:-1]:
            at = at[key]
        if to is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = to
        (folder / name).write_text(json.dumps(config))

    return change


def _weights(change_weights: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change_weights(weights)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return change


def _without(part: str) -> Change:
    return _weights(lambda w: [w.pop(name) for name in list(w) if part in name])


def _shrink(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name] = weights[name][:-1].contiguous()


def _nan(weights: dict[str, torch.Tensor]) -> None:
    for name, value in weights.items():
        if "layers.0" in name:
            weights[name] = torch.full_like(value, float("nan"))


CHANGES: dict[str, Change] = {
    "weights cut in half": _cut(WEIGHTS, 0.5),
    "weights cut near the end": _cut(WEIGHTS, 0.999),
    "weights cut in their header": _cut(WEIGHTS, 0.0001),
    "empty weights": _cut(WEIGHTS, 0),
    "no weights": _remove(WEIGHTS),
    "weights that are a text": _write(
        WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "a weight is missing": _without("layers.3.mlp.up_proj"),
    "the head is missing": _without("lm_head"),
    "the vision tower is missing": _without("vision_tower"),
    "a layer's weights are missing": _without("layers.5."),
    "a weight of another shape": _weights(_shrink),
    "weights that are not finite": _weights(_nan),
    "no config": _remove(CONFIG),
    "an empty config": _write(CONFIG, ""),
    "a config that is no JSON": _write(CONFIG, "{"),
    "a config that is a list": _write(CONFIG, "[]"),
    "a deep config": _write(CONFIG, DEEP),
    "a config without a type": _config("model_type", to=KeyError),
    "a config of no known type": _config("model_type", to="nothing"),
    "a config whose type is a number": _config("model_type", to=5),
    "a config of a text model": _config("model_type", to="llama"),
    "a config of a speech model": _config("model_type", to="whisper"),
    "more layers than weights": _config("text_config", "num_hidden_layers", to=8),
    "no layers": _config("text_config", "num_hidden_layers", to=0),
    "a width that is a text": _config("text_config", "hidden_size", to="wide"),
    "a width of another model": _config("text_config", "hidden_size", to=64),
    "heads that do not divide the width": _config("text_config", "num_attention_heads", to=7),
    "a vocabulary of another size": _config("text_config", "vocab_size", to=50),
    "a text config that is null": _config("text_config", to=[]),
    "a vision config of another patch": _config("vision_config", "patch_size", to=7),
    "an image token beyond the vocabulary": _config("image_token_index", to=10**6),
    "an unknown activation": _config("text_config", "hidden_act", to="swoosh"),
    "a dtype that is none": _config("dtype", to="float8000"),
    "no tokenizer": _remove("tokenizer.json"),
    "half a tokenizer": _cut("tokenizer.json", 0.5),
    "a deep tokenizer": _write("tokenizer.json", DEEP),
    "a tokenizer of another kind": _write("tokenizer.json", '{"version": "1.0", "model": {"type": "Magic"}}'),
    "no processor": _remove("processor_config.json"),
    "a processor that is no JSON": _write("processor_config.json", "{"),
    "a processor of no known class": _config("processor_class", to="Nothing", name="processor_config.json"),
    "a template that is no template": _write("chat_template.jinja", "{% for %}"),
    "a template that raises": _write("chat_template.jinja", "{{ raise_exception('not with me') }}"),
    "a template without the image": _write("chat_template.jinja", "USER: {{ messages[0]['content'][1]['text'] }}"),
    "a template with two images": _write("chat_template.jinja", "<image> <image> what?"),
    "a generation config that is no JSON": _write("generation_config.json", "{"),
}
#: What only decoding looks at.
DECODING = (
    "a generation config that is no JSON",
    "an image token beyond the vocabulary",
    "a template without the image",
    "weights that are not finite",
)


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    for name, change in CHANGES.items():
        folder = world.copy_model()
        change(folder)
        if "generation" not in name:
            yield Case(GROUP, f"fit: {name}", world.fit(model=folder))
        if name in DECODING or "weights" in name:
            yield Case(GROUP, f"generate: {name}", world.generate(model=folder))
    for name, path in (
        ("pictures", world.photos),
        ("a picture", world.picture),
        ("weights", world.model / WEIGHTS),
    ):
        yield Case(GROUP, f"fit: {name} instead", world.fit(model=path))
        yield Case(GROUP, f"verify: {name} instead", ["bank", "verify", world.bank, "--model", path])
    empty = world.fresh()
    yield Case(GROUP, "fit: an empty folder", world.fit(model=empty))
    yield Case(GROUP, "verify: a revision of a folder", [*_verify(world), "--revision", "v1"], "revision")
    yield Case(GROUP, "verify: no such device", [*_verify(world), "--device", "cuda:99"], "device")


def _verify(world: World) -> list[Any]:
    return ["bank", "verify", world.bank, "--model", world.model]
