"""The benchmarks of speed as one command."""

from __future__ import annotations

import typer

from eval.speed import kmeans, probe, replacement, routing, transformers, vllm

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.command("transformers")(transformers.main)
app.command("routing")(routing.main)
app.command("kmeans")(kmeans.main)
app.command("replacement")(replacement.main)
app.command("probe")(probe.main)
app.command("vllm")(vllm.main)

if __name__ == "__main__":
    app()
