"""A routed model against the plain one: `python -m eval.speed routing`.

A random-weight Qwen2.5-VL and a LLaVA of its size, one process, ways taking turns. Prefill is the time to the
first token, decode the mean time of those after it; medians over rounds are given with the interquartile range,
and each way's ratio to plain decoding in the same round. Beside them stand what arithmetic allows, and the caches.

The peer `masked` withdraws the image by the attention mask alone, as FastV's public code does: all rows still run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import pad

from eval.speed.models import IMAGE, describe, drawn, prompt, random_qwen
from eval.speed.routing_limits import LLAVA_1_5, Shape, limit
from eval.speed.timing import alternate, header, spread, write
from eval.speed.ways import Run, Stamps
from tccd.routing import Branch, Routed

OUT = Path("out/speed/routing.json")

#: Most that a way's CPU time may be, over that of plain decoding.
BARS = {"prefill": 0.75, "decode": 1.0}

#: Where the image's rows leave, as a share of the layers: 18 of 32 in the paper.
SPLIT = 0.56

WAYS = ("plain", "branch", "identity", "none", "masked")


def random_llava(
    layers: int = 28,
    hidden: int = 1536,
    ffn: int = 4096,
    heads: int = 12,
    vocabulary: int = 32_000,
    side: int = 24,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Any:
    """A `LlavaForConditionalGeneration` of 0.89 billion parameters by default, that never stops early.

    Every head has keys of its own, as in LLaVA-1.5. An image is `side` x `side` tokens.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, patch_size=14,
        image_size=14 * side,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return drawn(LlavaForConditionalGeneration, config, slice(IMAGE, IMAGE + 1), dtype, seed)


def llava_prompt(model: Any, batch: int, text_tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """`batch` prompts of one image and then `text_tokens` tokens, one more before the image."""
    generator = torch.Generator().manual_seed(seed)
    vision = model.config.vision_config
    image = (vision.image_size // vision.patch_size) ** 2
    ids = torch.full((batch, 1 + image + text_tokens), IMAGE)
    ids[:, 0] = 3
    ids[:, 1 + image :] = torch.randint(3, IMAGE, (batch, text_tokens), generator=generator)
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.dtype),
    }


@contextmanager
def masked(model: Any, split: int) -> Iterator[None]:
    """Withdraw the image from layer `split` on by the mask alone; for prompts without padding."""
    vision: list[Tensor] = []
    made: dict[tuple[int, int], Tensor] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            vision[:] = [kwargs["input_ids"] == IMAGE]

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        n, past = args[0].shape[1], kwargs["past_key_values"].get_seq_length(module.self_attn.layer_idx)
        if (n, past) not in made:
            made.clear()
            keys = torch.arange(past + n)
            queries = keys[past:, None]
            hidden = pad(vision[0], (0, past + n - vision[0].shape[1]))[:, None, None]
            made[n, past] = (keys <= queries) & (~hidden | (keys == queries))
        return args, kwargs | {"attention_mask": made[n, past]}

    layers = model.get_decoder().layers[split:]
    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    handles.append(model.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ways(model: Any, split: int, tokens: int) -> dict[str, Callable[[dict[str, Tensor], Stamps], Tensor]]:
    """Name -> what generates from a prompt, marking every token."""

    def generate(inputs: dict[str, Tensor], stamps: Stamps, **more: Any) -> Tensor:
        return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, stopping_criteria=[stamps], **more)

    def by_mask(inputs: dict[str, Tensor], stamps: Stamps) -> Tensor:
        with masked(model, split):
            return generate(inputs, stamps)

    branch = Branch.new(model, split).to(model.dtype)
    routes = {"branch": Routed(model, branch=branch)}
    routes |= {name: Routed(model, split, branch=name) for name in ("identity", "none")}
    found = {name: partial(generate, custom_generate=route) for name, route in routes.items()}
    return {"plain": generate, **found, "masked": by_mask}


def measure(
    models: dict[str, tuple[Any, Callable[[int], dict[str, Tensor]]]],
    new_tokens: int = 16,
    batches: tuple[int, ...] = (1, 4),
    rounds: int = 5,
    after_batch: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Measure every way of every model.

    Args:
        models: name -> a model, and what makes so many prompts for it.
        new_tokens: to generate.
        batches: numbers of prompts.
        rounds: that count.
        after_batch: told of what is found so far; a run takes a while.
    """
    config = {"split": SPLIT, "fuse": 1, "new_tokens": new_tokens, "rounds": rounds}
    found = header("Time and memory of a routed model in transformers", config)
    found |= {"bars": BARS, "models": {}, "llava_1_5": llava_1_5()}
    for name, (model, prompts) in models.items():
        split = round(SPLIT * describe(model)["layers"])
        cell: dict[str, Any] = {"model": describe(model), "split": split, "batches": {}}
        found["models"][name] = cell
        for batch in batches:
            cell["batches"][str(batch)] = _measure_batch(model, prompts(batch), split, new_tokens, rounds)
            after_batch(found)
    return found


def _measure_batch(model: Any, inputs: dict[str, Tensor], split: int, tokens: int, rounds: int) -> dict[str, Any]:
    made = ways(model, split, tokens)

    def run(name: str) -> Run:
        stamps = Stamps()
        made[name](inputs, stamps)
        return stamps.run(tokens)

    runs = alternate({name: partial(run, name) for name in WAYS}, rounds)
    image, batch = int((inputs["input_ids"][0] == IMAGE).sum()), len(inputs["input_ids"])
    text, shape = inputs["input_ids"].shape[1] - image, Shape.of(model.config)
    found: dict[str, Any] = {"image_tokens": image, "text_tokens": text, "ways": {}}
    for name in WAYS:
        cell: dict[str, Any] = {"cache": cache_of(model, inputs, split, name)}
        if name in ("branch", "identity", "none"):
            fuse = 0 if name == "none" else 1
            most = limit(shape, image, text, split, fuse, name == "branch", batch)
            cell["limit"] = {"prefill": most.prefill, "cache": most.cache, "decode": most.decode}
        for phase in Run._fields:
            mine, plain = ([getattr(r, phase) for r in runs[n]] for n in (name, "plain"))
            cell[phase] = {
                "cpu_seconds": spread([s.cpu for s in mine]),
                "wall_seconds": spread([s.wall for s in mine]),
                "cpu_ratio": spread([m.cpu / p.cpu for m, p in zip(mine, plain, strict=True)]),
                "wall_ratio": spread([m.wall / p.wall for m, p in zip(mine, plain, strict=True)]),
            }
        found["ways"][name] = cell
    return found


@torch.no_grad()
def cache_of(model: Any, inputs: dict[str, Tensor], split: int, name: str) -> int:
    """Bytes of keys and values after the prompt."""
    if name in ("plain", "masked"):
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    branch: Any = "identity" if name == "branch" else name  # a branch leaves nothing in the cache
    routed = Routed(model, split, branch=branch)
    with routed:
        model(**inputs, use_cache=True, logits_to_keep=1)
    assert routed.memory is not None
    return routed.memory.routed


def llava_1_5(image: int = 576, text: int = 128) -> list[dict[str, Any]]:
    """The arithmetic at the shapes that the paper measured, beside what it says."""
    rows = []
    for name, split, said in (
        ("7B", 18, "batch 4, A800: -28.0 %"),
        ("13B", 28, "-1.7 to -23 %, by split and card"),
    ):
        for kind, fuse in (("branch", 1), ("none", 0)):
            found = limit(LLAVA_1_5[name], image, text, split, fuse, kind == "branch", batch=4)
            rows.append(
                {
                    "model": name,
                    "split": split,
                    "branch": kind,
                    "prefill": found.prefill,
                    "cache": found.cache,
                    "decode": found.decode,
                    "plain_bytes": found.plain_bytes,
                    "routed_bytes": found.routed_bytes,
                    "paper": said if kind == "branch" else "",
                }
            )
    return rows


def show(found: dict[str, Any], console: Console) -> None:
    """Print a table for each model and batch, and the arithmetic of LLaVA-1.5."""
    for name, cell in found["models"].items():
        for batch, measured in cell["batches"].items():
            table = Table(
                *("way", "prefill CPU s", "ratio", "limit", "decode CPU ms", "ratio", "cache MiB", "of plain"),
                title=f"{name}, batch {batch}, split {cell['split']} of {cell['model']['layers']}: median "
                "(interquartile range)",
            )
            plain = measured["ways"]["plain"]["cache"]
            for way, one in measured["ways"].items():
                table.add_row(
                    way,
                    _text(one["prefill"]["cpu_seconds"]),
                    _text(one["prefill"]["cpu_ratio"], digits=3),
                    f"{one['limit']['prefill']:.3f}" if "limit" in one else "",
                    _text(one["decode"]["cpu_seconds"], 1e3, 1),
                    _text(one["decode"]["cpu_ratio"], digits=3),
                    f"{one['cache'] / 2**20:.1f}",
                    f"{one['cache'] / plain:.3f}",
                )
            console.print(table)
    table = Table(
        "LLaVA-1.5", "split", "branch", "prefill", "decode", "cache", "MB a prompt", "measured in the paper"
    )
    for row in found["llava_1_5"]:
        ratios = (f"{row[name]:.3f}" for name in ("prefill", "decode", "cache"))
        size = f"{row['plain_bytes'] / 1e6:.0f} -> {row['routed_bytes'] / 1e6:.0f}"
        table.add_row(row["model"], str(row["split"]), row["branch"], *ratios, size, row["paper"])
    console.print(table)


def _text(cell: dict[str, float], scale: float = 1, digits: int = 2) -> str:
    return f"{cell['median'] * scale:.{digits}f} ({cell['iqr'] * scale:.{digits}f})"


def main(
    batch: Annotated[list[int] | None, typer.Option(help="batch sizes; 1 and 4 if not said")] = None,
    rounds: int = 5,
    threads: int = 1,
    new_tokens: int = 16,
    image_tokens: int = 600,
    text_tokens: int = 60,
    out: Path = OUT,
) -> None:
    """Measure, print and write out/speed/routing.json."""
    torch.set_num_threads(threads)
    qwen, llava = random_qwen(), random_llava()
    found = measure(
        {
            "Qwen2.5-VL": (qwen, lambda n: prompt(qwen, n, image_tokens, text_tokens)),
            "LLaVA": (llava, lambda n: llava_prompt(llava, n, text_tokens)),
        },
        new_tokens=new_tokens,
        batches=tuple(batch or (1, 4)),
        rounds=rounds,
        after_batch=lambda found: write(found, out),
    )
    show(found, Console(width=150))


if __name__ == "__main__":
    typer.run(main)
