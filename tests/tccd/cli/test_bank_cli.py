"""`tccd bank`: show, verify, import-npz."""

import json

import numpy as np
import torch

from eval.zoo.build import FAMILIES, save
from tccd.centroids.bank import CentroidBank
from tests.tccd.cli.common import ESCAPE, ok, run


def test_bank_show(bank_file):
    shown = json.loads(ok(run("bank", "show", bank_file, "--json")).stdout)
    found = [(e["modality"], e["layer"], e["k"]) for e in shown["entries"]]
    assert found == [("text", 1, 8), ("text", 3, 8), ("vision", 2, 8)]
    assert (shown["model"]["model_id"], shown["model"]["hidden_size"]) == ("untrained", 128)
    assert shown["provenance"] == {"data": "drawn at random"}
    assert shown["file"] == str(bank_file)
    text = ok(run("bank", "show", bank_file)).stdout
    assert ESCAPE not in text
    assert "untrained" in text
    assert "drawn at random" in text


def test_bank_verify(bank_file, model_dir, tmp_path):
    assert json.loads(ok(run("bank", "verify", bank_file, "--model", model_dir, "--json")).stdout)["ok"] is True
    assert "is sound and fits" in ok(run("bank", "verify", bank_file, "--model", model_dir)).stdout
    family = FAMILIES["llava"]
    torch.manual_seed(1)
    save(family, *family.build(), tmp_path / "other")
    result = run("bank", "verify", bank_file, "--model", tmp_path / "other", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "BankMismatchError"


def test_bank_import_npz(model_dir, tmp_path):
    draw = np.random.default_rng(0)
    arrays = {
        name: draw.standard_normal((4, 128)).astype(np.float32) for name in ("text_centroids", "vis_centroids")
    }
    np.savez(tmp_path / "kmeans.npz", **arrays, metadata_json=np.array(json.dumps({"seed": 42})))
    out = tmp_path / "new" / "bank.safetensors"
    args = ("--model", model_dir, "--layers", "text=2,vision=3", "--out", out)
    shown = json.loads(ok(run("bank", "import-npz", tmp_path / "kmeans.npz", *args, "--json")).stdout)
    assert [(e["modality"], e["layer"], e["k"]) for e in shown["entries"]] == [
        ("text", 2, 4),
        ("vision", 3, 4),
    ]
    bank = CentroidBank.load(out)
    assert np.allclose(bank.centroids("text", 2).vectors, arrays["text_centroids"])
    ok(run("bank", "verify", out, "--model", model_dir))


def test_bank_import_npz_wants_every_layer(model_dir, tmp_path):
    np.savez(tmp_path / "a.npz", text_centroids=np.eye(4, 128), vis_centroids=np.eye(4, 128))
    args = ("--model", model_dir, "--out", tmp_path / "b.safetensors", "--layers")
    result = run("bank", "import-npz", tmp_path / "a.npz", *args, "text=2")
    assert result.exit_code != 0
    assert "vision" in result.stderr
    assert not (tmp_path / "b.safetensors").exists()
