"""Every reference in transformers against plain decoding and its peers: `python -m eval.speed transformers`.

One random-weight Qwen2.5-VL, one process, methods taking turns. Prefill is the time to the first token, decode
the mean time of those after it, a request the prompt and all its tokens; their medians over rounds are given with
the interquartile range, and so is each method's ratio to plain decoding in the same round. A blank image's
prefix is there already.

On a CPU a twin's session also runs the model's own generated tokens by a quicker attention than transformers does.
So the ratio to plain decoding by that attention (`plain_grouped`) stands beside: what the contrast itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.speed.models import describe, prompt, random_qwen
from eval.speed.timing import Seconds, alternate, header, peak_memory, spread, write
from eval.speed.ways import ALPHA_CD, ALPHA_INTERP, BETA, GATE, Method, Run, Stamps, methods
from tccd import TCCD, CentroidBank
from tccd.engine.reference import riders
from tccd.modality import MODALITIES

OUT = Path("out/speed/transformers.json")

#: Most that a method's CPU time may be, over that of plain decoding: prefill, and decode.
LIMITS = {
    "tail": (1.12, 1.10),
    "kept_prefix": (1.15, 1.10),
    "two_tails": (1.25, 1.15),
    "on_logits": (1.25, 1.25),
}
LIMIT_OF = {
    "tccd": "tail",
    "no_vision": "tail",
    "mean_vision": "tail",
    "early_exit": "tail",
    "early_exit_low": "tail",
    "early_exit_high": "tail",
    "blank_image": "kept_prefix",
    "no_vision_mean_vision": "two_tails",
    "no_vision_text_centroid": "two_tails",
    "tccd_plausible": "on_logits",
    "tccd_gated": "on_logits",
}
#: Methods whose sessions have twins.
TWINS = {*LIMIT_OF, "tccd_processor", "vision_centroid", "noised_image"} - {
    "early_exit",
    "early_exit_low",
    "early_exit_high",
}
BARS = {
    phase: {name: LIMITS[kind][number] for name, kind in LIMIT_OF.items()}
    for number, phase in enumerate(("prefill", "decode"))
}


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
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure every method; the first of `batches` is the one whose ratios stand on top.

    `after_batch` gets what is found so far after each batch size: a run takes a while. `only` names methods; plain
    decoding is always among them, by either attention.
    """
    width = model.config.get_text_config().hidden_size
    centroids = torch.randn(k, width, generator=torch.Generator().manual_seed(0))
    mean = torch.randn(describe(model)["layers"], width, generator=torch.Generator().manual_seed(1))
    entries = dict.fromkeys([(modality, layer) for modality in MODALITIES], centroids)
    bank = CentroidBank.from_arrays(model, entries, vision_mean=mean)
    ways, not_run = methods(model, bank, layer, new_tokens)
    ways = {name: way for name, way in ways.items() if not only or name in ("plain", "plain_grouped", *only)}
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
    found |= {"model": describe(model), "ratios": {}, "of_contrast": {}}
    found |= {"bars": BARS, "batches": {}, "not_run": not_run}
    for batch in batches:
        inputs = prompt(model, batch, image_tokens, text_tokens)
        cells = _measure_batch(ways, not_run, inputs, new_tokens, rounds)
        found["batches"][str(batch)] = cells | {"cache": cache_bytes(model, bank, inputs)}
        found["ratios"] = found["ratios"] or cells["ratios"]
        found["of_contrast"] = found["of_contrast"] or cells["of_contrast"]
        after_batch(found)
    return found


def _measure_batch(
    ways: dict[str, Method], not_run: dict[str, str], inputs: dict[str, Tensor], tokens: int, rounds: int
) -> dict[str, Any]:
    def run(name: str) -> Run:
        stamps = Stamps()
        ways[name](inputs, stamps)
        return stamps.run(tokens)

    for name in ways:  # whatever is done once, our self-test of the model and a blank image's prefix included
        if name not in ("two_pass", "mitigv_vcd"):
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
    phases = (*Run._fields, "request")
    found: dict[str, Any] = {kind: {phase: {} for phase in phases} for kind in ("ratios", "of_contrast")}
    found["methods"] = {}
    for name in ways:
        cell: dict[str, Any] = {"peak_memory_bytes": peaks[name]}
        for phase in phases:
            base = "plain_grouped" if name in TWINS else "plain"
            mine, plain, same = ([_seconds(r, phase, tokens) for r in runs[n]] for n in (name, "plain", base))
            cell[phase] = {
                "cpu_seconds": spread([s.cpu for s in mine]),
                "wall_seconds": spread([s.wall for s in mine]),
                "cpu_ratio": spread([m.cpu / p.cpu for m, p in zip(mine, plain, strict=True)]),
                "cpu_ratio_of_contrast": spread([m.cpu / p.cpu for m, p in zip(mine, same, strict=True)]),
                "wall_ratio": spread([m.wall / p.wall for m, p in zip(mine, plain, strict=True)]),
            }
            found["ratios"][phase][name] = cell[phase]["cpu_ratio"]["median"]
            found["of_contrast"][phase][name] = cell[phase]["cpu_ratio_of_contrast"]["median"]
        found["methods"][name] = cell
    return found


def _seconds(run: Run, phase: str, tokens: int) -> Seconds:
    """Of one phase; of the whole request, which is the prompt and every token."""
    if phase != "request":
        return getattr(run, phase)
    return Seconds(*(first + (tokens - 1) * each for first, each in zip(run.prefill, run.decode, strict=True)))


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
            *(
                "method",
                "prefill CPU s",
                "ratio",
                "bar",
                "decode CPU ms",
                "ratio",
                "of contrast",
                "bar",
                "request",
            ),
            *("prefill wall s", "decode wall ms", "peak MiB"),
            title=f"batch {batch}: median (interquartile range)",
        )
        for name, cell in cells["methods"].items():
            prefill, decode, peak = cell["prefill"], cell["decode"], cell["peak_memory_bytes"]
            table.add_row(
                name,
                _text(prefill["cpu_seconds"]),
                _text(prefill["cpu_ratio"], digits=3),
                _bar("prefill", name),
                _text(decode["cpu_seconds"], 1e3, 1),
                _text(decode["cpu_ratio"], digits=3),
                _text(decode["cpu_ratio_of_contrast"], digits=3),
                _bar("decode", name),
                _text(cell["request"]["cpu_ratio_of_contrast"], digits=3),
                _text(prefill["wall_seconds"]),
                _text(decode["wall_seconds"], 1e3, 1),
                "-" if peak is None else f"{peak / 2**20:.0f}",
            )
        console.print(table)
        cache = cells["cache"]
        console.print(f"cache after the prompt: {cache['plain']:,} bytes, erased stream {cache['erased']:,} more")
    for name, why in found["not_run"].items():
        console.print(f"{name} did not run: {why}")


def _bar(phase: str, name: str) -> str:
    return f"{BARS[phase][name]:.2f}" if name in BARS[phase] else ""


def _text(cell: dict[str, float], scale: float = 1, digits: int = 2) -> str:
    return f"{cell['median'] * scale:.{digits}f} ({cell['iqr'] * scale:.{digits}f})"


def main(
    batch: Annotated[list[int] | None, typer.Option(help="batch sizes; 1 and 4 if not said")] = None,
    rounds: int = 5,
    threads: int = 1,
    new_tokens: int = 16,
    text_tokens: int = 60,
    only: Annotated[list[str] | None, typer.Option(help="methods beside plain; all if not said")] = None,
    out: Path = OUT,
) -> None:
    """Measure, print and write out/speed/transformers.json."""
    torch.set_num_threads(threads)
    found = measure(
        random_qwen(),
        new_tokens=new_tokens,
        text_tokens=text_tokens,
        only=only or (),
        batches=tuple(batch or (1, 4)),
        rounds=rounds,
        after_batch=lambda found: write(found, out),
    )
    show(found, Console(width=170))


if __name__ == "__main__":
    typer.run(main)
