"""TCCD in transformers against plain decoding and its peers: `python -m eval.speed transformers`.

One random-weight Qwen2.5-VL, one process, methods taking turns. Prefill is the time to the first token, decode
the mean time of those after it; their medians over rounds are given with the interquartile range, and so is
each method's ratio to plain decoding in the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import StoppingCriteria

from eval.baselines.two_pass import two_pass
from eval.speed.models import describe, prompt, random_qwen
from eval.speed.timing import Seconds, alternate, header, peak_memory, spread, write
from tccd import TCCD, CentroidBank
from tccd.decoding.references import centroid_erasure
from tccd.engine.reference import riders

OUT = Path("out/speed/transformers.json")

#: Most that a method's CPU time may be, over that of plain decoding.
BARS = {
    "prefill": {"tccd": 1.20, "tccd_plausible": 1.25, "tccd_gated": 1.25},
    "decode": {"tccd": 1.15, "tccd_plausible": 1.25, "tccd_gated": 1.25},
}

ALPHA_CD, ALPHA_INTERP, BETA, GATE = 1.0, 0.4, 0.1, "margin"


class Run(NamedTuple):
    """Times of one generation."""

    prefill: Seconds
    decode: Seconds


class Stamps(StoppingCriteria):
    """Reads the clocks after every token, and stops nothing."""

    def __init__(self) -> None:
        self.readings = [Seconds.now()]

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """The stopping-criterion form."""
        self.mark()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def mark(self) -> None:
        """One more token."""
        self.readings.append(Seconds.now())

    def run(self, tokens: int) -> Run:
        """Prefill and decode times, if `tokens` tokens came."""
        start, first, *_, last = self.readings
        if len(self.readings) != tokens + 1:
            raise RuntimeError(f"{len(self.readings) - 1} tokens came, expected {tokens}")
        return Run(first.since(start), last.since(first, tokens - 1))


#: Generates from a prompt, marking every token.
Method = Callable[[dict[str, Tensor], Stamps], Any]


def methods(model: Any, bank: CentroidBank, tokens: int) -> tuple[dict[str, Method], dict[str, str]]:
    """What is compared, and what could not be: name -> method, name -> reason."""
    settings: dict[str, Any] = {"alpha_cd": ALPHA_CD, "alpha_interp": ALPHA_INTERP}
    tccd = TCCD(model, bank, **settings)
    replace = centroid_erasure(bank, tccd.layer, ALPHA_INTERP).replace
    plausible = TCCD(model, bank, **settings, beta=BETA)
    gated = TCCD(model, bank, **settings, gate=GATE)

    def generate(inputs: dict[str, Tensor], stamps: Stamps, **more: Any) -> Any:
        return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, stopping_criteria=[stamps], **more)

    def by_processor(inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        return generate(inputs, stamps, logits_processor=[tccd.logits_processor()])

    def in_two_passes(inputs: dict[str, Tensor], stamps: Stamps) -> Any:
        return two_pass(model, inputs, tccd.layer, replace, ALPHA_CD, tokens, stamps.mark)

    found: dict[str, Method] = {
        "plain": generate,
        "two_pass": in_two_passes,
        "tccd": partial(generate, custom_generate=tccd),
        "tccd_plausible": partial(generate, custom_generate=plausible),
        "tccd_gated": partial(generate, custom_generate=gated),
        "tccd_processor": by_processor,
    }
    if not _is_there("mitigv"):
        return found, {"mitigv_vcd": "not installed; pip install --no-deps mitigv"}
    return found | {"mitigv_vcd": partial(mitigv_vcd, model, tokens)}, {}


def mitigv_vcd(model: Any, tokens: int, inputs: dict[str, Tensor], stamps: Stamps) -> Any:
    """VCD (Leng et al., CVPR 2024) by the library mitigv, its public loader and its own defaults.

    Its processor is one that hands over the prompt as it is. It has no callback for tokens, so the method that
    chooses each is wrapped.
    """
    from mitigv import load_mitigator

    class Processor:
        eos_token_id = pad_token_id = None

        def __call__(self, **kwargs: Any) -> dict[str, Tensor]:
            return inputs

        def batch_decode(self, sequences: Tensor, **kwargs: Any) -> list[str]:
            return [str(row.tolist()) for row in sequences]

    vcd: Any = load_mitigator("vcd", model=model, processor=Processor())
    choose = vcd._sample_next

    def choose_and_mark(*args: Any) -> Any:
        token = choose(*args)
        stamps.mark()
        return token

    vcd._sample_next = choose_and_mark
    return vcd(None, "", max_new_tokens=tokens)


def measure(
    model: Any,
    layer: int = 12,
    k: int = 256,
    image_tokens: int = 600,
    text_tokens: int = 60,
    new_tokens: int = 16,
    batches: tuple[int, ...] = (1, 4),
    rounds: int = 5,
    after_batch: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Measure every method; the first of `batches` is the one whose ratios stand on top.

    `after_batch` gets what is found so far after each batch size: a run takes a while.
    """
    width = model.config.get_text_config().hidden_size
    centroids = torch.randn(k, width, generator=torch.Generator().manual_seed(0))
    bank = CentroidBank.from_arrays(model, {("text", layer): centroids})
    ways, not_run = methods(model, bank, new_tokens)
    config = {
        "layer": layer,
        "k": k,
        "alpha_cd": ALPHA_CD,
        "alpha_interp": ALPHA_INTERP,
        "beta": BETA,
        "gate": GATE,
        "image_tokens": image_tokens,
        "text_tokens": text_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
    }
    found = header("Time and memory of contrast in transformers", config, "mitigv")
    found |= {"model": describe(model), "ratios": {}, "bars": BARS, "batches": {}, "not_run": not_run}
    for batch in batches:
        inputs = prompt(model, batch, image_tokens, text_tokens)
        cells = _measure_batch(ways, not_run, inputs, new_tokens, rounds)
        found["batches"][str(batch)] = cells | {"cache": cache_bytes(model, bank, inputs)}
        found["ratios"] = found["ratios"] or cells["ratios"]
        after_batch(found)
    return found


def _is_there(name: str) -> bool:
    return find_spec(name) is not None


def _measure_batch(
    ways: dict[str, Method], not_run: dict[str, str], inputs: dict[str, Tensor], tokens: int, rounds: int
) -> dict[str, Any]:
    def run(name: str) -> Run:
        stamps = Stamps()
        ways[name](inputs, stamps)
        return stamps.run(tokens)

    for name in ("plain", "tccd"):  # whatever is done once, our self-test of the model included, is done now
        run(name)
    peaks = {}
    for name in list(ways):
        try:
            peaks[name] = peak_memory(partial(run, name))
        except Exception as error:
            if name != "mitigv_vcd":  # a peer that fails is a finding; ours would be a bug
                raise
            not_run[name] = f"batch {len(inputs['input_ids'])}: {type(error).__name__}: {error}"
            del ways[name]
    runs = alternate({name: partial(run, name) for name in ways}, rounds, warmup=0)
    found: dict[str, Any] = {"ratios": {"prefill": {}, "decode": {}}, "methods": {}}
    for name in ways:
        cell: dict[str, Any] = {"peak_memory_bytes": peaks[name]}
        for phase in Run._fields:
            mine, plain = ([getattr(r, phase) for r in runs[n]] for n in (name, "plain"))
            cell[phase] = {
                "cpu_seconds": spread([s.cpu for s in mine]),
                "wall_seconds": spread([s.wall for s in mine]),
                "cpu_ratio": spread([m.cpu / p.cpu for m, p in zip(mine, plain, strict=True)]),
                "wall_ratio": spread([m.wall / p.wall for m, p in zip(mine, plain, strict=True)]),
            }
            found["ratios"][phase][name] = cell[phase]["cpu_ratio"]["median"]
        found["methods"][name] = cell
    return found


@torch.no_grad()
def cache_bytes(model: Any, bank: CentroidBank, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Bytes of keys and values after the prompt: the model's own, and the erased stream's beside them."""
    with TCCD(model, bank, alpha_cd=ALPHA_CD, alpha_interp=ALPHA_INTERP):
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        erased = riders(cache)
        sizes = {id(layer): layer.keys.nbytes + layer.values.nbytes for layer in cache.layers}
        mine = sum(sizes[id(layer)] for layer in erased)
    return {"plain": sum(sizes.values()) - mine, "erased": mine}


def show(found: dict[str, Any], console: Console) -> None:
    """Print a table a batch."""
    for batch, cells in found["batches"].items():
        table = Table(
            *("method", "prefill CPU s", "ratio", "decode CPU ms", "ratio"),
            *("prefill wall s", "decode wall ms", "peak MiB"),
            title=f"batch {batch}: median (interquartile range)",
        )
        for name, cell in cells["methods"].items():
            prefill, decode, peak = cell["prefill"], cell["decode"], cell["peak_memory_bytes"]
            table.add_row(
                name,
                _text(prefill["cpu_seconds"]),
                _text(prefill["cpu_ratio"], digits=3),
                _text(decode["cpu_seconds"], 1e3, 1),
                _text(decode["cpu_ratio"], digits=3),
                _text(prefill["wall_seconds"]),
                _text(decode["wall_seconds"], 1e3, 1),
                "-" if peak is None else f"{peak / 2**20:.0f}",
            )
        console.print(table)
        cache = cells["cache"]
        console.print(f"cache after the prompt: {cache['plain']:,} bytes, erased stream {cache['erased']:,} more")
    for name, why in found["not_run"].items():
        console.print(f"{name} did not run: {why}")


def _text(cell: dict[str, float], scale: float = 1, digits: int = 2) -> str:
    return f"{cell['median'] * scale:.{digits}f} ({cell['iqr'] * scale:.{digits}f})"


def main(
    batch: Annotated[list[int] | None, typer.Option(help="batch sizes; 1 and 4 if not said")] = None,
    rounds: int = 5,
    threads: int = 1,
    new_tokens: int = 16,
    out: Path = OUT,
) -> None:
    """Measure, print and write out/speed/transformers.json."""
    torch.set_num_threads(threads)
    found = measure(
        random_qwen(),
        new_tokens=new_tokens,
        batches=tuple(batch or (1, 4)),
        rounds=rounds,
        after_batch=lambda found: write(found, out),
    )
    show(found, Console(width=140))


if __name__ == "__main__":
    typer.run(main)
