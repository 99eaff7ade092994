"""A vLLM server on loopback, its memory, and one request at a time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.soak.asks import MODEL, Body

#: Few blocks, small chunks: requests wait, are preempted, and find each other's blocks.
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "256", "--block-size", "32", "--num-gpu-blocks-override", "48"),
    *("--max-num-seqs", "24", "--max-num-batched-tokens", "96", "--enforce-eager"),
)
START_SECONDS = 300


@dataclass
class Server:
    """A running one."""

    url: str
    process: subprocess.Popen[bytes]

    def ask(self, body: Body, timeout: float = 180) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON of the answer.

        Raises:
            OSError: no answer in that time, or no server.
        """
        data = json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + "/v1/chat/completions", data, kind)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {"error": error.read().decode()[:500]}

    def counter(self, name: str) -> float:
        """Sum of one of the counters at `/metrics`."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def family(self) -> list[int]:
        """Ids of the server's process and all below it."""
        found = [self.process.pid]
        for one in found:
            for task in Path(f"/proc/{one}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
        return found

    def resident(self) -> int:
        """Bytes of memory that the server's processes hold, shared ones split between them."""
        total = 0
        for one in self.family():
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def kill(self) -> None:
        """`kill -9` of every process of the engine; the front end is left to notice."""
        for one in self.family()[1:]:
            os.kill(one, 9)


@contextmanager
def serving(model: Path, bank: Path, log: Path) -> Iterator[Server]:
    """A server for a model with a bank, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *FLAGS]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL]
    more = {"TCCD_BANK": str(bank), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    more |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a") as out:
        process = subprocess.Popen(command, env=os.environ | more, stdout=out, stderr=out)
    found = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait(found, log)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(server: Server, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(server.url + "/health", timeout=5).close()
            return
        except OSError:
            if server.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(1)
