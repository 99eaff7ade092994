"""The harness as a command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress

from eval import zoo
from eval.peers import page, streams
from eval.peers.kept import Folder
from eval.peers.methods import BETAS, GATES, STRENGTHS, methods
from eval.peers.outcomes import SEEDS, Scores, prior
from eval.peers.questions import SOURCES, Questions, questions
from eval.peers.table import HARM, Twins, rows
from probes.asking.scoring import targets
from probes.report.envelope import envelope, installed
from tccd.atomic import write_atomic
from tccd.decoder import identify

SPEED = Path("eval/results/speed-transformers.json")


def scores(name: str, asked: Questions, out: Path, bar: Progress) -> Scores:
    """Every stream of one model, kept under `out`, and what would be right."""
    one = streams.Model(name)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    key = {"model": str(identify(one.model).fingerprint), "questions": asked.digest(), "versions": versions}
    task = bar.add_task(name, total=len(asked.samples))

    def tick(group: str, done: int) -> None:
        bar.update(task, description=f"{name}: {group}", completed=done)

    found = streams.logits(one, asked, Folder(out / "logits" / name, key), tick)
    clean = found["clean"]
    wordings = [sample.prompt for sample in asked.samples]
    found |= {"uniform": torch.zeros_like(clean), "prior": prior(clean, wordings, asked.choosing)}
    right = torch.zeros(clean.shape, dtype=torch.bool)
    for i, goal in enumerate(targets(one.processor, asked.samples)[1]):
        right[i, list(goal.tokens[0])] = True
    return Scores(found, right)


def costs(file: Path) -> dict[str, float]:
    """CPU time of a whole request over plain's by the same attention, by method.

    As `python -m eval.speed transformers` measured it.
    """
    if not file.exists():
        return {}
    ratios: Mapping[str, float] = json.loads(file.read_text()).get("of_contrast", {}).get("request", {})
    return dict(ratios)


def written(report: Mapping[str, Any]) -> str:
    """JSON with one row a line, numbers to five digits."""
    head = json.dumps({key: value for key, value in report.items() if key != "rows"}, indent=1)
    body = ",\n".join(f"  {json.dumps(_short(row))}" for row in report["rows"])
    return f'{head[:-2]},\n "rows": [\n{body}\n ]\n}}\n'


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Run what is not kept yet; choose, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    parser.add_argument("--models", nargs="+", choices=zoo.FAMILIES, default=list(zoo.FAMILIES))
    parser.add_argument("--choosing", type=int, default=2400, help="questions to choose settings on")
    parser.add_argument("--held-out", type=int, default=3000, help="questions to report")
    parser.add_argument("--speed", type=Path, default=SPEED, help="what `eval.speed transformers` wrote")
    parser.add_argument("--page", type=Path, help="Markdown whose tables are filled, a PNG beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = questions(options.choosing, options.held_out)
    every, paid = methods(), costs(options.speed)
    found: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as bar:
        for family in options.models:
            names = (f"{family}-competing", f"{family}-grounded")
            twins = Twins(*(scores(name, asked, options.out, bar) for name in names))
            found += rows(family, "greedy", twins, asked, every, paid)
            sampled = Twins(twins.competing.sampled(), twins.grounded.sampled())
            found += rows(family, "sampled", sampled, asked, every, paid)
    config = {
        "sources": SOURCES, "choosing": int(asked.choosing.sum()), "held_out": int((~asked.choosing).sum()),
        "harm_allowed": HARM, "alpha_cd": STRENGTHS, "beta": BETAS, "gates": GATES, "seeds": SEEDS,
    }  # fmt: skip
    report = envelope("References and their peers", config, installed("mitigv"), schema="tccd-peers/1")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "peers.json", written(report | {"rows": found}).encode())
    Console().print(page.markdown(found, "greedy"), markup=False, soft_wrap=True)
    page.draw(found, options.out / "peers.png")
    if options.page:
        page.fill(options.page, found)
        page.draw(found, options.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
