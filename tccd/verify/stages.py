"""The stages of verify, each in a process of its own, so that the model is in memory once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from tccd.decoding.vllm.banks import VARIABLE
from tccd.errors import TCCDError
from tccd.verify.answering import TOP, medians, on_gpu, trial
from tccd.verify.asks import Prepared, prepare
from tccd.verify.checking import check
from tccd.verify.judge import judge
from tccd.verify.report import Report

T = TypeVar("T")


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


def verify_engine(
    model: str,
    *,
    bank: Path | None = None,
    layer: int | None = None,
    dtype: str | None = None,
    data: str | None = None,
    requests: int = 8,
    tokens: int = 16,
    rounds: int = 5,
    eager: bool | None = None,
    cost_bar: float | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Make requests with transformers, have vLLM answer them, and check the answers with transformers.

    Args:
        model: local folder or hub id.
        bank: what to decode with; random states of the model itself when None.
        layer: decoder layer, from 0; the bank's lowest, or two fifths up, when None.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`, the checkpoint's own; when None float32 on a CPU and
            the checkpoint's own on a GPU.
        data: images and prompts, as for `tccd fit`; synthetic when None.
        requests: in the mixed batch.
        tokens: to generate for each.
        rounds: of timing.
        eager: without compilation and CUDA graphs; on a CPU without when None.
        cost_bar: fail where a phase takes so many times the plain one's time.
        trust_remote_code: run Python code that the model's repository brings.

    Raises:
        TCCDError: a step failed; names it.
    """
    prepared = in_process(
        "preparing with transformers",
        prepare,
        model,
        bank,
        Path(tempfile.gettempdir(), f"tccd-verify-{os.getpid()}.safetensors"),
        layer=layer,
        dtype=dtype or ("auto" if on_gpu() else "float32"),
        data=data,
        number=requests,
        trust_remote_code=trust_remote_code,
    )
    options = engine_options(model, prepared, tokens, not on_gpu() if eager is None else eager, trust_remote_code)
    asked = prepared.requests, prepared.variants, prepared.timed
    found = in_process("asking vLLM", trial, options, *asked, tokens, rounds)
    plain = [replace(request, extra=None) for request in prepared.requests]
    replies = [*zip(prepared.requests, found.mixed, strict=True), *zip(plain, found.plain, strict=True)]
    checked = in_process("checking with transformers", check, model, prepared, replies, trust_remote_code)
    verdicts = judge(prepared, found, checked[: len(plain)], checked[len(plain) :], cost_bar)
    return Report(model, found.about, prepared, verdicts, medians(found.cost))
