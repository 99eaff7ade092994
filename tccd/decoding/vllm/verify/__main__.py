"""Is TCCD inside vLLM exact, isolated and cheap on this machine?

Three processes, one after another, so that the model is in memory once: transformers makes requests (and a bank),
vLLM answers them, transformers checks the answers. The report is plain text, to paste into an issue.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from tccd.atomic import write_atomic
from tccd.cli.options import DType, TrustRemoteCode
from tccd.decoding.vllm.banks import VARIABLE
from tccd.decoding.vllm.verify.engine import TOP, medians, on_gpu, trial, vllm_version
from tccd.decoding.vllm.verify.judge import Verdict, judge
from tccd.decoding.vllm.verify.reference import check
from tccd.decoding.vllm.verify.requests import Prepared, prepare
from tccd.errors import ConfigError, MissingExtraError, TCCDError

T = TypeVar("T")

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        model: hub id or folder.
        about: runner, attention backend, CUDA graphs and the like.
        prepared: what was asked.
        verdicts: in order.
        cost: way -> phase -> median seconds, and ratio to the plain batch.
    """

    model: str
    about: dict[str, Any]
    prepared: Prepared
    verdicts: Sequence[Verdict]
    cost: dict[str, dict[str, dict[str, float]]]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(v.passed is not False for v in self.verdicts)

    def text(self) -> str:
        """The report as plain text."""
        about, asked = self.about, self.prepared
        lines = [
            f"tccd verify: {self.model}",
            ", ".join(f"{name} {value}" for name, value in versions().items()),
            f"device: {device()}",
            f"engine: {asked.dtype}, runner {about['runner']}, attention {about['attention_backend']}, "
            f"CUDA graphs {about['cuda_graphs']}, compilation {about['compilation']}, async scheduling "
            f"{'on' if about['async_scheduling'] else 'off'}",
            f"bank: {asked.k} text centroids at layer {asked.layer}, {asked.bank}",
            f"requests: {len(asked.requests)}, {sum(r.extra is not None for r in asked.requests)} of them TCCD",
        ]
        for verdict in self.verdicts:
            mark = {True: "PASS", False: "FAIL", None: "    "}[verdict.passed]
            lines.append(f"{mark} {verdict.name}: {verdict.text}")
            lines += [f"       {line}" for line in verdict.details]
        return "\n".join([*lines, "PASS" if self.passed else "FAIL"])

    def json(self) -> str:
        """The report for a program."""
        found = {
            "model": self.model,
            "versions": versions(),
            "device": device(),
            "engine": self.about | {"dtype": self.prepared.dtype},
            "bank": {"file": str(self.prepared.bank), "layer": self.prepared.layer, "k": self.prepared.k},
            "verdicts": [asdict(v) for v in self.verdicts],
            "cost": self.cost,
            "passed": self.passed,
        }
        return json.dumps(found, indent=2) + "\n"


def versions() -> dict[str, str]:
    """Releases of what takes part."""
    import torch
    import transformers

    from tccd import __version__

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
    return f"CPU, {name or platform.processor()}"


def in_process(stage: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function in a fresh process, whose memory is free when it returns.

    Raises:
        TCCDError: it failed, or its process died; names the stage.
    """
    context = multiprocessing.get_context("spawn")
    with Console(stderr=True).status(stage), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except TCCDError:
            raise
        except BrokenProcessPool as error:
            raise TCCDError(f"{stage}: the process died; too little memory?") from error
        except Exception as error:  # vLLM and transformers have many
            traceback.print_exception(error)
            reason = str(error).strip().split("\n")[0]
            raise TCCDError(f"{stage} failed, see above: {type(error).__name__}: {reason}") from error


def engine_options(
    model: str, prepared: Prepared, tokens: int, eager: bool, trust_remote_code: bool
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, and its environment in the process to come."""
    os.environ[VARIABLE] = str(prepared.bank.resolve())
    # The engine is looked into, so it is in the process that asks it; and that process ends with it.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    options = {
        "model": model,
        "dtype": prepared.dtype,
        "max_model_len": prepared.longest + tokens,
        "max_num_seqs": max(8, len(prepared.requests)),
        "max_logprobs": TOP,
        "enforce_eager": eager,
        "enable_prefix_caching": True,
        "trust_remote_code": trust_remote_code,
        "seed": 0,
    }
    if not on_gpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        options["block_size"] = 32  # the CPU's own are too long for these prompts to fill several
    return options


@app.command()
def verify(
    model: Annotated[str, typer.Option(metavar="ID_OR_PATH", help="Local folder or hub id.")],
    bank: Annotated[
        Path | None, typer.Option(help="Bank to decode with; if not given, random states of the model itself.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer, from 0; if not given, the bank's lowest, or two fifths up.")
    ] = None,
    dtype: Annotated[
        DType, typer.Option(help="auto: float32 on a CPU, the checkpoint's own on a GPU.")
    ] = DType.auto,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Images and prompts, as for tccd fit; synthetic if not given."),
    ] = None,
    requests: Annotated[int, typer.Option(min=2, help="Requests in the mixed batch.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate for each.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 5,
    eager: Annotated[
        bool | None,
        typer.Option("--eager/--graphs", help="Without, or with, compilation and CUDA graphs; on a CPU without."),
    ] = None,
    cost_bar: Annotated[
        float | None, typer.Option(help="Fail where a phase with TCCD takes so many times the plain one's time.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON, too.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check TCCD inside vLLM on this machine: exactness, isolation, cost. Exit status 0 only if all passes."""
    try:
        if find_spec("vllm") is None:
            raise MissingExtraError("vllm is not installed; it comes with an extra: pip install 'tccd[vllm]'")
        if json_file is not None and not json_file.parent.is_dir():
            raise ConfigError(f"--json {json_file}: there is no folder {json_file.parent}")
        prepared = in_process(
            "preparing with transformers",
            prepare,
            model,
            bank,
            Path(tempfile.gettempdir(), f"tccd-verify-{os.getpid()}.safetensors"),
            layer=layer,
            dtype="float32" if dtype is DType.auto and not on_gpu() else dtype.value,
            data=data,
            number=requests,
            trust_remote_code=trust_remote_code,
        )
        options = engine_options(
            model, prepared, tokens, not on_gpu() if eager is None else eager, trust_remote_code
        )
        asked = prepared.requests, prepared.variants, prepared.timed
        found = in_process("asking vLLM", trial, options, *asked, tokens, rounds)
        plain = [replace(request, extra=None) for request in prepared.requests]
        replies = [*zip(prepared.requests, found.mixed, strict=True), *zip(plain, found.plain, strict=True)]
        checked = in_process("checking with transformers", check, model, prepared, replies, trust_remote_code)
        verdicts = judge(prepared, found, checked[: len(plain)], checked[len(plain) :], cost_bar)
    except TCCDError as error:
        typer.echo(f"tccd: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    report = Report(model, found.about, prepared, verdicts, medians(found.cost))
    typer.echo(report.text())
    if json_file is not None:
        write_atomic(json_file, report.json().encode())
    raise typer.Exit(0 if report.passed else 1)


if __name__ == "__main__":
    app()
