"""What a grid of the replacement probe costs beside its baseline: `python -m eval.speed probe`.

One prompt of a random-weight Qwen2.5-VL, taken through one clean forward (the baseline), through the probe's
streams at several values of alpha_interp, and through as many hooked forwards, the naive way. The ways take turns,
and medians of CPU time over rounds are compared with the baseline of the same round.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.speed.models import describe, prompt, random_qwen
from eval.speed.timing import Seconds, alternate, header, spread, write
from probes.asking.forward import run_streams
from tccd import CentroidBank
from tccd.centroids.replacement import Centroids
from tccd.decoder import find_decoder
from tccd.decoding.references import centroid_erasure
from tccd.modality import Modality, modality_map, vision_token_ids

OUT = Path("out/speed/probe.json")
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)

#: Most that a grid's CPU time may be, over that of the baseline alone.
BARS = {"text": 2.5}


@torch.no_grad()
def naive(
    model: Any,
    inputs: dict[str, Tensor],
    layer: int,
    modality: Modality,
    vectors: Tensor,
    alphas: tuple[float, ...],
) -> list[Tensor]:
    """Next-token logits of the clean stream and of each alpha, one whole forward each, as the reference does."""
    modalities = modality_map(
        inputs["input_ids"], vision_token_ids(model.config), inputs["attention_mask"], has_images=True
    )
    where, centroids = modalities.segment(modality), Centroids(vectors)
    module = model.get_decoder().layers[layer]

    def forward() -> Tensor:
        return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]

    found = [forward()]
    for alpha in alphas:

        def erase(module: Any, args: Any, output: Any, alpha: float = alpha) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[where] = centroids.replace(hidden[where], alpha)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = module.register_forward_hook(erase)
        try:
            found.append(forward())
        finally:
            handle.remove()
    return found


def measure(
    model: Any,
    modality: Modality = "text",
    layer: int = 12,
    k: int = 256,
    alphas: tuple[float, ...] = ALPHAS,
    image_tokens: int = 600,
    text_tokens: int = 60,
    rounds: int = 5,
) -> dict[str, Any]:
    """CPU and wall seconds of each way, and its ratio to the baseline in the same round."""
    inputs = prompt(model, 1, image_tokens, text_tokens)
    decoder = find_decoder(model)
    width = model.config.get_text_config().hidden_size
    vectors = torch.randn(k, width, generator=torch.Generator().manual_seed(0))
    bank = CentroidBank.from_arrays(model, {(modality, layer): vectors})
    erasures = [centroid_erasure(bank, layer, alpha, modality) for alpha in alphas]
    ways: dict[str, Any] = {
        "baseline": partial(run_streams, decoder, inputs, ()),
        "probe": partial(run_streams, decoder, inputs, erasures),
        "naive": partial(naive, model, inputs, layer, modality, vectors, alphas),
    }
    streams, forwards = ways["probe"](), ways["naive"]()
    ours = [streams.clean, *streams.others]
    differ = [float((a.float() - b.float()).abs().max()) for a, b in zip(ours, forwards, strict=True)]
    spans = alternate({name: partial(_span, way) for name, way in ways.items()}, rounds, warmup=0)
    found: dict[str, Any] = {"ways": {}, "max_difference": max(differ)}
    for name, mine in spans.items():
        pairs = list(zip(mine, spans["baseline"], strict=True))
        found["ways"][name] = {
            "cpu_seconds": spread([s.cpu for s in mine]),
            "wall_seconds": spread([s.wall for s in mine]),
            "cpu_ratio": spread([s.cpu / base.cpu for s, base in pairs]),
            "wall_ratio": spread([s.wall / base.wall for s, base in pairs]),
        }
    settings = {"modality": modality, "layer": layer, "k": k, "alphas": list(alphas), "rounds": rounds}
    settings |= {"image_tokens": image_tokens, "text_tokens": text_tokens}
    return found | {"settings": settings, "bar": BARS.get(modality)}


def _span(run: Any) -> Seconds:
    start = Seconds.now()
    run()
    return Seconds.now().since(start)


def show(found: dict[str, Any], console: Console) -> None:
    """Print a table a modality."""
    for modality, part in found["modalities"].items():
        settings = part["settings"]
        title = f"{len(settings['alphas'])} alphas of {modality} erasure at layer {settings['layer']}"
        table = Table(
            "way", "CPU s", "over the baseline", "wall s", title=f"{title}: median (interquartile range)"
        )
        for name, cell in part["ways"].items():
            columns = ("cpu_seconds", "cpu_ratio", "wall_seconds")
            table.add_row(name, *(f"{cell[c]['median']:.2f} ({cell[c]['iqr']:.2f})" for c in columns))
        console.print(table)


def main(rounds: int = 5, threads: int = 1, vision: bool = True, out: Path = OUT) -> None:
    """Measure, print and write out/speed/probe.json."""
    torch.set_num_threads(threads)
    model = random_qwen()
    found = header("Time of the replacement probe", {"rounds": rounds, "threads": threads})
    found |= {"model": describe(model), "modalities": {}}
    modalities: tuple[Modality, ...] = ("text", "vision") if vision else ("text",)
    for modality in modalities:
        found["modalities"][modality] = measure(model, modality, rounds=rounds)
        write(found, out)
    show(found, Console(width=120))


if __name__ == "__main__":
    typer.run(main)
