"""`tccd verify`: is TCCD inside vLLM exact, isolated and cheap on this machine?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tccd.cli.console import AsJson, print_json
from tccd.cli.options import DType, TrustRemoteCode
from tccd.errors import MissingExtraError


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
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check TCCD inside vLLM on this machine: exactness, isolation, cost.

    \b
    Three processes, one after another: transformers makes requests, vLLM
    answers them, transformers checks the answers. Prints one block to paste
    into an issue. Exit code 0 only if all passes.

    \b
    Examples:
      tccd verify --model Qwen/Qwen2.5-VL-3B-Instruct
      tccd verify --model ./model --bank bank.safetensors --data easy-vqa --json
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm is not installed; it comes with an extra: pip install 'tccd[vllm]'")

    from tccd.verify.stages import verify_engine

    report = verify_engine(
        model,
        bank=bank,
        layer=layer,
        dtype=None if dtype is DType.auto else dtype.value,
        data=data,
        requests=requests,
        tokens=tokens,
        rounds=rounds,
        eager=eager,
        cost_bar=cost_bar,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(report.json())
    else:
        typer.echo(report.text())
    raise typer.Exit(0 if report.passed else 1)
