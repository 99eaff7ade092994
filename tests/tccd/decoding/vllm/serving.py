"""A real server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tccd.decoding.vllm.host import ROOT
from tests.tccd.decoding.vllm.test_refusals import environment, serve

MODEL = "served"


@dataclass
class Server:
    url: str
    process: subprocess.Popen
    log: Path
    first: str = ""  # /metrics before any request

    def resident(self) -> int:
        """Resident bytes of the server and its children."""
        children = subprocess.run(
            ["ps", "-o", "rss=", "--pid", str(self.process.pid), "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        return sum(1024 * int(line) for line in children.stdout.split())

    def post(self, path: str, body: dict[str, Any] | str | bytes) -> tuple[int, str]:
        """Status and text of what comes back."""
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> str:
        return urllib.request.urlopen(self.url + "/metrics").read().decode()


@contextmanager
def serving(folder: Path, options: dict[str, Any], **env: str) -> Iterator[Server]:
    """A server for a model, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, "--enforce-eager"]
    for name in ("dtype", "max_model_len", "max_num_batched_tokens", "block_size", "max_logprobs"):
        flags += ["--" + name.replace("_", "-"), str(options[name])]
    flags += ["--max-num-seqs", "16", "--num-gpu-blocks-override", "64"]
    with tempfile.NamedTemporaryFile("w", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [*serve(folder), *flags],
            env=environment(VLLM_CPU_OMP_THREADS_BIND="nobind", **env),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    found = Server(f"http://127.0.0.1:{port}", process, Path(log.name))
    try:
        _wait(found)
        found.first = found.metrics()
        yield found
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        os.unlink(found.log)


def _wait(server: Server) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert server.process.poll() is None, server.log.read_text()[-4000:]
        assert time.monotonic() < deadline, server.log.read_text()[-4000:]
        try:
            urllib.request.urlopen(server.url + "/health", timeout=5)
            return
        except OSError:
            time.sleep(1)
