"""Is TCCD inside vLLM exact, isolated and cheap on this machine? `python -m tccd.decoding.vllm.verify --model ID`.

Three processes, one after another, so that the model is in memory once: transformers makes requests (and a bank),
vLLM answers them, transformers checks the answers. The report is plain text for an issue.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from tccd.atomic import write_atomic
from tccd.cli.options import DType
from tccd.decoding.vllm.banks import VARIABLE
from tccd.decoding.vllm.verify_engine import TOP, Reply, Request, Trial, medians, on_gpu, trial
from tccd.decoding.vllm.verify_reference import Checked, Prepared, Step, check, difference, prepare
from tccd.errors import ConfigError, MissingExtraError, TCCDError

T = TypeVar("T")

#: Largest difference of a log-probability in fp32.
TIGHT = 1e-3
#: Times the plain requests' noise, scaled by the contrast, that a half-precision difference may be.
FACTOR = 3.0
#: Times that allowance at least, by which a broken stream has to stand out for a pass to mean something.
CLEAR = 2.0
#: Broken streams that have to stand out; others are reported.
TOLD_APART = ("no contrast", "other centroids")
#: Two centroids nearer to a tie than this share of a row's norm: fp32 engines need not choose the same.
TIE = 1e-6

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@dataclass(frozen=True)
class Verdict:
    """One line of the report: PASS or FAIL (None: figures alone), and what was found."""

    name: str
    passed: bool | None
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """What plain vLLM differs from transformers by, which nothing here can be asked to undercut.

    Attributes:
        typical: median over steps of the median difference of a log-probability.
        largest: the largest difference.
        tight: fp32 figures can be asked for: the dtype is float32, and plain requests keep to `TIGHT`.
    """

    typical: float
    largest: float
    tight: bool

    def allowed(self, alpha_cd: float) -> float:
        """Largest difference in fp32; else the typical one.

        The combination `(1 + a) clean - a erased` of two streams that are each off by the noise is off by
        `1 + 2 a` times it at most; `FACTOR` covers that the erased stream's noise passes another input.
        """
        return TIGHT if self.tight else FACTOR * (1 + 2 * alpha_cd) * self.typical

    def accepts(self, steps: Sequence[Step], alpha_cd: float) -> bool:
        """Whether the steps of a request are as near as can be asked."""
        if self.tight:
            return all(s.equal and s.largest < TIGHT for s in steps)
        return statistics.median(s.typical for s in steps) <= self.allowed(alpha_cd)


def alpha_cd(request: Request) -> float:
    """Strength of a request's contrast; 0 for a plain one."""
    return 0.0 if request.extra is None else float(request.extra.get("tccd_alpha_cd", 1.0))


def exactness(
    requests: Sequence[Request], mixed: Sequence[Checked], noise: Noise, plain: Sequence[Step]
) -> Verdict:
    """Judge the TCCD requests of the mixed batch against transformers."""
    lines, failed, judged = [], 0, []
    for i, (request, found) in enumerate(zip(requests, mixed, strict=True)):
        if not found.prompt_equal:
            lines.append(
                f"request {i}: vLLM and transformers made other prompt tokens of the same text and images"
            )
        elif request.extra is not None and noise.tight and found.gap < TIE:
            lines.append(f"request {i}: not judged, two centroids are as near to a state ({found.gap:.0e} of it)")
        elif not noise.accepts(
            asked := [s for s in found.steps if s.contrasted] or found.steps, alpha_cd(request)
        ):
            failed += 1
            lines.append(
                f"request {i} {request.extra or 'plain'}: {_off(asked)}, allowed {noise.allowed(alpha_cd(request)):.1e}"
            )
        elif request.extra is not None:
            judged.append((request, asked))
    ungated = [(r, s) for r, s in judged if "tccd_gate" not in (r.extra or {})]
    seen = {}
    for kind in judged[0][1][0].broken if judged else ():
        shown = [
            (statistics.median(s.broken[kind] for s in steps), noise.allowed(alpha_cd(r))) for r, steps in ungated
        ]
        seen[kind] = sum(value > CLEAR * limit for value, limit in shown)
        lines.append(
            f"a broken stream, {kind}: would differ by {_median([v for v, _ in shown]):.1e}, "
            f"clearly in {seen[kind]} of {len(shown)} requests"
        )
    blind = [kind for kind in TOLD_APART if 2 * seen.get(kind, 0) < len(ungated) or not ungated]
    if blind and not failed:
        lines.append(f"the noise hides: {', '.join(blind)}. Nothing is shown by passing; try --dtype float32")
    tccd = [s for r, c in zip(requests, mixed, strict=True) if r.extra for s in c.steps]
    passed = not failed and not blind and all(c.prompt_equal for c in mixed)
    return Verdict("exactness", passed, f"TCCD: {_off(tccd)}; plain: {_off(plain)}", tuple(lines))


def isolation(name: str, pairs: Sequence[tuple[Request, Reply, Reply]], noise: Noise) -> Verdict:
    """Judge pairs of replies that have to be the same."""
    lines, every = [], []
    for i, (request, one, other) in enumerate(pairs):
        steps = compare(one, other)
        every += steps
        if not noise.accepts(steps, alpha_cd(request)):
            lines.append(
                f"{i} {request.extra or 'plain'}: {_off(steps)}, allowed {noise.allowed(alpha_cd(request)):.1e}"
            )
    return Verdict(name, not lines and bool(every), _off(every), tuple(lines))


def compare(one: Reply, other: Reply) -> list[Step]:
    """Two replies to a request, step by step, up to the first other token."""
    steps = []
    for a, b, mine, theirs in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=True):
        common = [token for token in mine if token in theirs]
        steps.append(Step(*difference([mine[t] for t in common], [theirs[t] for t in common]), a == b, True))
        if a != b:
            break
    return steps


def cache(variants: Sequence[Request], found: Trial, noise: Noise) -> Verdict:
    """Judge a prompt's variants over each other's cached states."""
    verdict = isolation("prefix cache", list(zip(variants, found.fresh, found.cached, strict=True)), noise)
    hits = [reply.cached for reply in found.cached]
    passed, lines = verdict.passed, list(verdict.details)
    if not all(hits[1:]):
        passed = False
        lines.append("not shown: the cache was not hit (prefix caching off, or blocks longer than the prompt)")
    for i, j in ((0, 1), (1, 2)):
        apart = compare(found.fresh[i], found.fresh[j])[0].typical
        if apart <= CLEAR * noise.allowed(alpha_cd(variants[j])):
            passed = False
            lines.append(
                f"not shown: variants {i} and {j} differ by {apart:.1e} only, so a mixed-up cache might pass"
            )
    text = f"plain, alpha_interp 0.4, 0, plain, 0.4: {verdict.text}; cached tokens {', '.join(map(str, hits))}"
    return Verdict("isolation: prefix cache", passed, text, tuple(lines))


def cost(found: Trial, bar: float | None) -> Verdict:
    """The figures, judged where a bar is given."""
    table = medians(found.cost)
    names = {"plain": "plain", "one": "1 of 4 TCCD", "all": "4 of 4 TCCD"}
    lines = [
        f"{names[way]:12} "
        + ", ".join(f"{p} {v['seconds'] * 1e3:.2f} ms (x{v['ratio']:.3f})" for p, v in phases.items())
        for way, phases in table.items()
    ]
    about = found.about
    lines.append(
        f"KV cache: {about['kv_blocks']:,} blocks of {about['kv_block_size']} tokens; without the plugin about "
        f"{about['kv_blocks_without_plugin']:,}"
    )
    worst = max(v["ratio"] for phases in table.values() for v in phases.values())
    text = f"{'wall time (GPU)' if on_gpu() else 'CPU time'}, medians of interleaved rounds; decode is a step's"
    return Verdict("cost", None if bar is None else worst <= bar, text, tuple(lines))


def judge(
    prepared: Prepared, found: Trial, mixed: list[Checked], plain: list[Checked], bar: float | None
) -> list[Verdict]:
    """Every verdict, in the report's order."""
    requests = prepared.requests
    steps = [s for c in plain for s in c.steps]
    steps += [s for r, c in zip(requests, mixed, strict=True) if r.extra is None for s in c.steps]
    if not steps:
        text = "vLLM and transformers see other prompt tokens in every plain request: nothing can be compared"
        return [Verdict("exactness", False, text)]
    largest, typical = max(s.largest for s in steps), statistics.median(s.typical for s in steps)
    noise = Noise(typical, largest, prepared.dtype == "float32" and largest < TIGHT)
    rule = (
        f"fp32: every log-probability within {TIGHT}, every token equal"
        if noise.tight
        else f"half precision: a request's typical difference <= {FACTOR:g} (1 + 2 alpha_cd) x {typical:.1e} (plain), "
        f"and broken streams > {CLEAR:g} x that"
    )
    if prepared.dtype == "float32" and not noise.tight:
        rule = f"plain vLLM is off by {largest:.1e} in float32, so judged as {rule}"
    beside = [(r, a, b) for r, a, b in zip(requests, found.mixed, found.plain, strict=True) if r.extra is None]
    return [
        Verdict("rule", None, rule),
        exactness(requests, mixed, noise, steps),
        isolation(
            "isolation: alone and in the batch", list(zip(requests, found.alone, found.mixed, strict=True)), noise
        ),
        isolation("isolation: plain beside TCCD", beside, noise),
        cache(prepared.variants, found, noise),
        cost(found, bar),
    ]


def block(model: str, prepared: Prepared, found: Trial, verdicts: Sequence[Verdict], made: bool) -> str:
    """The report, as plain text."""
    about = found.about
    lines = [
        f"tccd verify: {model}",
        ", ".join(f"{name} {value}" for name, value in versions().items()),
        f"device: {device()}",
        f"engine: runner {about['runner']}, attention {about['attention_backend']}, CUDA graphs {about['cuda_graphs']}, "
        f"compilation {about['compilation']}, async scheduling {'on' if about['async_scheduling'] else 'off'}, "
        f"{prepared.dtype}",
        f"bank: {prepared.k} text centroids at layer {prepared.layer}, "
        + (f"random states of the model itself ({prepared.bank})" if made else prepared.bank.name),
        f"requests: {len(prepared.requests)}, of which {sum(r.extra is not None for r in prepared.requests)} TCCD",
    ]
    for verdict in verdicts:
        mark = {True: "PASS ", False: "FAIL ", None: "     "}[verdict.passed]
        lines.append(f"{mark}{verdict.name}: {verdict.text}")
        lines += [f"       {line}" for line in verdict.details]
    lines.append("PASS all" if passed(verdicts) else "FAIL")
    return "\n".join(lines)


def passed(verdicts: Sequence[Verdict]) -> bool:
    """Whether nothing failed."""
    return all(v.passed is not False for v in verdicts)


def versions() -> dict[str, str]:
    """Releases of what takes part."""
    import torch
    import transformers

    from tccd import __version__
    from tccd.decoding.vllm.verify_engine import vllm_version

    return {
        "tccd": __version__,
        "vllm": vllm_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def device() -> str:
    """What it ran on."""
    import torch

    if on_gpu():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU {name or platform.processor()}, {torch.get_num_threads()} threads"


def apart(stage: str, function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh process, whose memory is free when it returns.

    Raises:
        TCCDError: it failed, or its process died; names the stage.
    """
    context = multiprocessing.get_context("spawn")
    with Console(stderr=True).status(stage), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except TCCDError:
            raise
        except BrokenProcessPool as error:
            raise TCCDError(f"{stage}: the process died; is there too little memory?") from error
        except Exception as error:
            traceback.print_exception(error)
            reason = str(error).strip().split("\n")[0]
            raise TCCDError(f"{stage} failed: {type(error).__name__}: {reason}; see above") from error


def run(
    model: str,
    bank: Path | None,
    layer: int | None,
    dtype: str,
    data: str | None,
    requests: int,
    tokens: int,
    rounds: int,
    eager: bool,
    bar: float | None,
    trust_remote_code: bool,
) -> tuple[str, dict[str, Any], bool]:
    """Do it all: the report, the same for a program, and whether all passed."""
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm is not installed; it comes with an extra: pip install 'tccd[vllm]'")
    made = Path(tempfile.mkdtemp(prefix="tccd-verify-"))
    precision = "float32" if dtype == "auto" and not on_gpu() else dtype
    prepared = apart(
        "preparing with transformers",
        prepare,
        model,
        bank,
        made,
        layer,
        precision,
        data,
        requests,
        trust_remote_code,
    )
    if bank is not None:
        made.rmdir()
    os.environ[VARIABLE] = str(prepared.bank.resolve())
    # The engine's parts are looked at, and its memory given back: it runs in the process that we end.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    length = prepared.longest + tokens
    options: dict[str, Any] = {
        "model": model,
        "dtype": prepared.dtype,
        "max_model_len": length,
        "max_num_seqs": max(8, requests),
        "max_logprobs": TOP,
        "enforce_eager": eager,
        "enable_prefix_caching": True,
        "trust_remote_code": trust_remote_code,
        "seed": 0,
    }
    if not on_gpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        options["block_size"] = 32  # its own default is longer than most prompts here
    found = apart(
        "asking vLLM", trial, options, prepared.requests, prepared.variants, prepared.timed, tokens, rounds
    )
    plain = [Request(r.prompt, r.ids, r.images) for r in prepared.requests]
    asked = [*zip(prepared.requests, found.mixed, strict=True), *zip(plain, found.plain, strict=True)]
    checked = apart(
        "checking with transformers",
        check,
        model,
        prepared.bank,
        prepared.layer,
        prepared.dtype,
        asked,
        trust_remote_code,
    )
    verdicts = judge(prepared, found, checked[: len(plain)], checked[len(plain) :], bar)
    text = block(model, prepared, found, verdicts, bank is None)
    result = {
        "model": model,
        "versions": versions(),
        "device": device(),
        "engine": found.about | {"dtype": prepared.dtype},
        "bank": {"layer": prepared.layer, "k": prepared.k, "made_here": bank is None},
        "verdicts": [asdict(v) for v in verdicts],
        "cost": medians(found.cost),
        "passed": passed(verdicts),
    }
    return text, result, passed(verdicts)


def _off(steps: Sequence[Step]) -> str:
    if not steps:
        return "nothing compared"
    return (
        f"log-probabilities off by {max(s.largest for s in steps):.1e} at most, "
        f"{statistics.median(s.typical for s in steps):.1e} typically, "
        f"{sum(s.equal for s in steps)}/{len(steps)} tokens equal"
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


@app.command()
def verify(
    model: Annotated[str, typer.Option(metavar="ID_OR_PATH", help="Local folder or hub id.")],
    bank: Annotated[
        Path | None, typer.Option(help="Bank to decode with; random states of the model itself if not given.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Its layer; the lowest, or two fifths up.")] = None,
    dtype: Annotated[
        DType, typer.Option(help="auto: float32 on a CPU, the checkpoint's own on a GPU.")
    ] = DType.auto,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Images and prompts; synthetic ones if not given.")
    ] = None,
    requests: Annotated[int, typer.Option(min=2, help="Requests in the mixed batch.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate for each.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 5,
    eager: Annotated[
        bool | None,
        typer.Option("--eager/--graphs", help="Without or with compilation and CUDA graphs; eager on a CPU."),
    ] = None,
    cost_bar: Annotated[
        float | None,
        typer.Option(help="Fail where a phase with TCCD takes more than so many times the plain one."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there, too.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model's repository brings.")
    ] = False,
) -> None:
    """Check TCCD inside vLLM on this machine: exactness, isolation, cost. Exit status 0 only if all passes."""
    try:
        settled = eager if eager is not None else not on_gpu()
        text, result, good = run(
            model, bank, layer, dtype.value, data, requests, tokens, rounds, settled, cost_bar, trust_remote_code
        )
    except TCCDError as error:
        typer.echo(f"tccd: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    typer.echo(text)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(result, indent=2) + "\n").encode())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    app()
