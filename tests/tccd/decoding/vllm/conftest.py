from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tccd import CentroidBank
from tccd.decoding.vllm.settings import CENTROIDS
from tests.tccd.decoding.common import text_centroids
from tests.tccd.decoding.vllm.host import Ask, Host
from tests.tccd.decoding.vllm.models import IMAGE_TEXT, save

LAYERS = (1, 2)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, a bank for it, and how its prompts look."""

    folder: Path
    file: Path
    bank: CentroidBank
    family: str

    def ask(
        self, number: int, images: int = 1, words: int = 8, before: int = 3, extra: Any = None, **params: Any
    ) -> Ask:
        """A request: words, images of various sizes, words."""
        rng = np.random.default_rng(number)

        def picture(index: int) -> Image.Image:
            height, width = (16 + 16 * (index % 3), 16 + 8 * (number % 4)) if self.family != "llava" else (64, 64)
            return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

        def text(count: int) -> str:
            if self.family == "llava":
                return " ".join(rng.choice(["what", "is", "the", "color", "of", "this", "image", "red"], count))
            return " ".join(f"w{n}" for n in rng.integers(3, 110, count))

        mark = "<image>" if self.family == "llava" else IMAGE_TEXT
        prompt = " ".join([text(before), *([mark] * images), text(words)])
        return Ask(prompt, tuple(picture(i) for i in range(images)), {"max_tokens": 6} | params, extra)


def on(**settings: Any) -> dict[str, Any]:
    """Extra arguments of a request; at layer 2 where the reference has one."""
    fitted = settings.get("reference", "text-centroid") in CENTROIDS
    return {f"tccd_{key}": value for key, value in (({"layer": 2} if fitted else {}) | settings).items()}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Checkpoint] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            from eval import zoo

            folder = (
                zoo.path("llava-competing") if family == "llava" else tmp_path_factory.mktemp(family) / "model"
            )
            if family != "llava":
                save(family, folder)
            made[family] = bank_for(folder, tmp_path_factory.mktemp("bank") / "bank.safetensors", family)
        return made[family]

    return make


def bank_for(folder: Path, file: Path, family: str) -> Checkpoint:
    """A bank of random centroids, of the size of the model's states."""
    from tests.tccd.decoding.vllm.reference import load

    model, _ = load(folder)
    width = model.config.get_text_config().hidden_size
    scale = 1.0 if family == "llava" else 2.0
    tensors = {("text", layer): scale / 2 * text_centroids(width, seed=layer) for layer in LAYERS}
    tensors["vision", 2] = scale / 2 * text_centroids(width, seed=9)
    bank = CentroidBank.from_arrays(model, {k: torch.as_tensor(v) for k, v in tensors.items()})
    bank.save(file)
    return Checkpoint(folder, file, bank, family)


#: Small blocks, few of them, and chunks that split images: every engine pages, chunks and caches.
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
    "block_size": 32,
    "num_gpu_blocks_override": 24,
    "max_logprobs": -1,
    "enforce_eager": True,
    "enable_prefix_caching": True,
}

ENGINES: dict[str, dict[str, Any]] = {
    "llava": {"family": "llava"},
    "qwen2_5_vl": {"family": "qwen2_5_vl"},
    "qwen3_vl": {"family": "qwen3_vl"},
    "llava-v2": {"family": "llava", "v2": True},
    "qwen2_5_vl-v2": {"family": "qwen2_5_vl", "v2": True},
    "llava-v2-async": {"family": "llava", "v2": True, "env": {"TCCD_TEST_ASYNC": "1"}},
    "llava-compiled": {"family": "llava", "enforce_eager": False},
    "qwen2_5_vl-subprocess": {"family": "qwen2_5_vl", "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
}


@dataclass(frozen=True)
class Running:
    """An engine and the checkpoint it serves."""

    name: str
    host: Host
    checkpoint: Checkpoint

    @property
    def in_process(self) -> bool:
        """Whether the engine's parts can be looked at."""
        return "subprocess" not in self.name

    @property
    def v2(self) -> bool:
        return "-v2" in self.name


def start(checkpoint: Checkpoint, bank: str | None = "", **options: Any) -> Host:
    """An engine for a checkpoint, with its own bank unless said otherwise; without image limits of its own."""
    options = SMALL | options
    return Host(checkpoint.folder, str(checkpoint.file) if bank == "" else bank, **options)


@pytest.fixture(scope="session", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, checkpoint: Any) -> Iterator[Running]:
    pytest.importorskip("vllm")
    options = dict(ENGINES[request.param])
    served = checkpoint(options.pop("family"))
    host = start(served, **options)
    yield Running(request.param, host, served)
    host.close()


@pytest.fixture(scope="session")
def server(checkpoint: Any) -> Iterator[Any]:
    """A server of `llava-competing` with a bank."""
    pytest.importorskip("vllm")
    from tests.tccd.decoding.vllm.serving import serving

    served = checkpoint("llava")
    with serving(served.folder, SMALL, TCCD_BANK=str(served.file)) as found:
        yield found
