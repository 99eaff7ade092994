"""What stops an engine before it starts: real configurations, made as `vllm serve` makes them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tccd import CentroidBank
from tccd.decoder import identify
from tccd.decoding.vllm.banks import Banks
from tccd.decoding.vllm.refusals import check_banks, check_version
from tccd.errors import BankMismatchError, ConfigError
from tests.tccd.decoding.common import text_centroids
from tests.tccd.decoding.vllm.host import ROOT
from tests.tccd.decoding.vllm.models import tokenizer
from tests.tiny import tiny

vllm_needed = [pytest.mark.vllm, pytest.mark.slow]

CONFIGS = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
load_general_plugins()
found = {}
for name, options in json.loads(sys.argv[1]).items():
    try:
        EngineArgs(**options).create_engine_config()
        found[name] = None
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print("FOUND", json.dumps(found))
"""

#: name in the message -> what asks for it
UNTESTED: dict[str, dict[str, Any]] = {
    "pipeline parallelism": {"pipeline_parallel_size": 2},
    "data parallelism": {"data_parallel_size": 2},
    "speculative decoding": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "LoRA": {"enable_lora": True},
    "KV connectors": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "a fp8_e5m2 KV cache": {"kv_cache_dtype": "fp8_e5m2"},
    "prompt embeddings": {"enable_prompt_embeds": True},
    "a custom scheduler": {"scheduler_cls": "tests.tccd.decoding.vllm.elsewhere.Mine"},
    "a custom worker": {"worker_cls": "tests.tccd.decoding.vllm.elsewhere.Mine"},
    "a scheduling policy other than fcfs": {"scheduling_policy": "priority"},
    "max_num_seqs below 2": {"max_num_seqs": 1},
    "events of the KV cache": {"kv_events_config": {"enable_kv_cache_events": True, "publisher": "null"}},
    "weights quantised otherwise than to int8 by compressed-tensors": {"quantization": "fp8", "dtype": "bfloat16"},
}


def serve(folder: Path) -> list[str]:
    """`vllm serve FOLDER`; by its module where the command asks for a distribution that the CPU build isn't."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    return [str(Path(sys.executable).with_name("vllm")), "serve", str(folder)]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TCCD_", "VLLM_"))}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return kept | offline | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def configure(bank: Path, options: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    done = subprocess.run(
        [sys.executable, "-c", CONFIGS, json.dumps(options)],
        env=environment(TCCD_BANK=str(bank)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("FOUND "))


@pytest.fixture(scope="module")
def text_only(tmp_path_factory):
    import transformers as hf

    folder = tmp_path_factory.mktemp("text") / "model"
    config = hf.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def refused(checkpoint):
    pytest.importorskip("vllm")
    served = checkpoint("qwen2_5_vl")
    common = {"model": str(served.folder), "dtype": "float32", "max_model_len": 256}
    options = {name: common | asked for name, asked in UNTESTED.items()}
    options["fine"] = common
    return configure(served.file, options)


class TestConfigurations:
    pytestmark = vllm_needed

    @pytest.mark.parametrize("name", UNTESTED)
    def test_untested_ones_are_refused_by_name(self, refused, name):
        assert refused[name] is not None
        assert name in refused[name]
        assert "Start vLLM without TCCD_BANK" in refused[name]

    def test_a_tested_one_is_not(self, refused):
        assert refused["fine"] is None

    def test_a_language_model_is_served_without_a_bank(self, text_only):
        options = {"model": str(text_only), "dtype": "float32", "max_model_len": 128}
        assert configure(Path("none"), {"x": options})["x"] is None

    def test_a_label_does_not_decide_where_weights_do(self, checkpoint, tmp_path):
        served = checkpoint("qwen2_5_vl")
        model = replace(served.bank.model, model_id="somebody/copy", revision="0" * 40)
        file = tmp_path / "bank.safetensors"
        CentroidBank.from_arrays(model, {("text", 2): text_centroids()}).save(file)
        options = {"model": str(served.folder), "dtype": "float32", "max_model_len": 256}
        assert configure(file, {"x": options})["x"] is None

    def test_the_command_line_gets_one_clear_line_and_no_engine(self, checkpoint, tmp_path):
        served = checkpoint("qwen2_5_vl")
        other = tiny("qwen2_5_vl", seed=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
        CentroidBank.from_arrays(other, {("text", 2): text_centroids()}).save(tmp_path / "other.safetensors")
        for value, expected in (
            (str(tmp_path / "other.safetensors"), "tccd: bank 'default': the bank was fitted for another model"),
            (str(tmp_path / "none.safetensors"), "tccd: TCCD_BANK, bank 'default':"),
        ):
            done = subprocess.run(
                [*serve(served.folder), "--dtype", "float32", "--max-model-len", "256"],
                env=environment(TCCD_BANK=value),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert "Initializing a V1 LLM engine" not in done.stdout + done.stderr  # nothing was loaded
            last = done.stderr.strip().splitlines()[-1]
            assert last.startswith(expected)
            assert "--fitted-on" not in last  # which vLLM has not

    def test_weights_that_are_read_late_are_compared_once_loaded(self, checkpoint, tmp_path):
        from safetensors.torch import load_file

        from tests.tccd.decoding.vllm.conftest import start

        served = checkpoint("qwen2_5_vl")
        folder = tmp_path / "model"
        shutil.copytree(served.folder, folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        other = tiny("qwen2_5_vl", seed=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
        CentroidBank.from_arrays(other, {("text", 2): text_centroids()}).save(tmp_path / "other.safetensors")
        with pytest.raises(RuntimeError, match=r"bank 'default': .*embeddings: bank"):
            start(replace(served, folder=folder), bank=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("loaded", [False, True])
def test_banks_of_other_models(loaded):
    model = identify(tiny("qwen2_5_vl", layers=5))
    unread, elsewhere = replace(model, embedding=None), replace(model, model_id="x", revision="1")

    def check(fitted: Any, seen: Any) -> None:
        bank = CentroidBank.from_arrays(fitted, {("text", 2): text_centroids(model.hidden_size)})
        check_banks(Banks({"a": bank}), replace(seen, fingerprint=None), loaded)

    for other, said in (
        (replace(model, model_type="llava"), "kind: bank 'llava', model 'qwen2_5_vl'"),
        (replace(model, num_layers=7), "number of layers: bank 7, model 5"),
        (
            replace(elsewhere, embedding="0" * 64),
            f"embeddings: bank 'x' with fingerprint 0+, model '{model.model_id}' with",
        ),
        (replace(elsewhere, embedding=None), "model id: bank 'x'"),
    ):
        with pytest.raises(BankMismatchError, match=f"bank 'a': the bank was fitted for another model .*{said}"):
            check(other, model)
    check(elsewhere, model)
    if loaded:
        with pytest.raises(BankMismatchError, match="model id: bank 'x'"):
            check(elsewhere, unread)
    else:
        check(elsewhere, unread)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3"])
def test_the_fingerprint_on_disk_is_that_of_the_loaded_model(tmp_path, family):
    from tccd.decoding.vllm.weights import embedding

    model = tiny(family)
    model.save_pretrained(tmp_path)
    assert embedding(tmp_path) == identify(model).embedding is not None
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert embedding(tmp_path / "shards") == identify(model).embedding


def test_a_checkpoint_that_cannot_be_read_early_is_left_for_later(tmp_path):
    from tccd.decoding.vllm.weights import embedding

    assert embedding(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert embedding(tmp_path) is None


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "1.0", "0.32.0rc1.dev3", "0.32.1+cpu"])
def test_releases(found):
    if found.startswith("0.32"):
        check_version(found)
        return
    with pytest.raises(ConfigError, match=r"vLLM >=0.32,<0.33, found "):
        check_version(found)
