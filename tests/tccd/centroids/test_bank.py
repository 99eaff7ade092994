import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tccd.centroids.bank import BANK_FILE, CentroidBank, Entry
from tccd.decoder import ModelIdentity, identify
from tccd.errors import BankError, BankMismatchError
from tests.tiny import tiny

MODEL = ModelIdentity("org/model", "abc123", "llava", hidden_size=8, num_layers=6, fingerprint="f" * 64)


def arrays(*keys, k=4, width=8):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(k, width, generator=generator) for key in keys}


@pytest.fixture
def bank():
    return CentroidBank.from_arrays(
        MODEL, arrays(("vision", 3), ("text", 2), ("text", 0)), data="somewhere", images=12, created="2026-01-01"
    )


def test_holds_what_it_was_given(bank):
    assert bank.layers("text") == (0, 2)
    assert bank.layers("vision") == (3,)
    assert bank.centroids("text", 2).vectors.shape == (4, 8)
    assert bank.centroids("text", 2).vectors.dtype == torch.float32
    assert repr(bank) == (
        "CentroidBank(org/model: text.0 k=4, text.2 k=4, vision.3 k=4; width 8, data 'somewhere', images 12)"
    )


def test_asking_for_what_it_does_not_hold_lists_what_it_does(bank):
    with pytest.raises(
        BankMismatchError, match=r"no vision centroids at layer 2; it holds text.0, text.2, vision.3"
    ):
        bank.centroids("vision", 2)
    with pytest.raises(BankMismatchError, match=r"no audio centroids"):
        bank.centroids("audio", 2)


def test_comes_back_from_a_file(bank, tmp_path):
    path = tmp_path / "b.safetensors"
    bank.save(path)
    back = CentroidBank.load(path, MODEL)
    assert back.model == bank.model
    assert back.entries == bank.entries
    assert back.provenance == bank.provenance == {"data": "somewhere", "images": 12, "created": "2026-01-01"}
    assert back.tccd_version == bank.tccd_version
    for key, tensor in bank.tensors.items():
        assert torch.equal(back.tensors[key], tensor)


def test_equal_banks_are_equal_files_and_any_safetensors_reader_opens_them(bank, tmp_path):
    from safetensors.torch import load_file

    for name in "ab":
        CentroidBank.from_arrays(MODEL, dict(reversed(list(bank.tensors.items()))), **bank.provenance).save(
            tmp_path / name
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(load_file(tmp_path / "a")) == ["text.0", "text.2", "vision.3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_save_leaves_the_old_file(bank, tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    bank.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"disk is full: could not write .*b\.safetensors \(1,\d+ bytes\)"):
        bank.with_provenance(images=99).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_save_says_where_it_can_not(bank, tmp_path):
    with pytest.raises(BankError, match=r"is a folder; give a file name, such as .*bank.safetensors"):
        bank.save(tmp_path)
    with pytest.raises(BankError, match=r"nowhere is no folder; make it first"):
        bank.save(tmp_path / "nowhere" / "b")


def test_with_provenance_leaves_the_bank_as_it_was(bank):
    more = bank.with_provenance(images=13, note="x")
    assert (more.provenance["images"], bank.provenance["images"]) == (13, 12)
    assert more.tensors == bank.tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"hidden_size": 16}, "width: bank 8, model 16"),
        ({"num_layers": 7}, "number of layers: bank 6, model 7"),
        # equal weights win over names and revisions: a commit that changes a README is no other model
        ({"revision": "def"}, None),
        ({"model_id": "org/mirror"}, None),
        ({"revision": None, "model_id": "my-folder"}, None),
        # and other weights over equal names
        ({"fingerprint": "e" * 64}, "weights: bank 'org/model' with fingerprint ffffffffffff"),
        ({"fingerprint": "e" * 64}, "the revision is the same, so they were quantised or changed"),
        # weights that can't be read: names and revisions decide
        ({"fingerprint": None}, None),
        ({"fingerprint": None, "revision": "def"}, "revision: bank abc123, model def"),
        ({"fingerprint": None, "model_id": "org/other"}, "model id: bank 'org/model', model 'org/other'"),
        ({"revision": None, "fingerprint": "e" * 64}, "weights: bank 'org/model' with fingerprint ffffffffffff"),
        # no weights to read either: the name decides
        ({"revision": None, "fingerprint": None}, None),
        (
            {"revision": None, "fingerprint": None, "model_id": "other"},
            "model id: bank 'org/model', model 'other'",
        ),
    ],
)
def test_identity_rule(bank, change, message):
    other = replace(MODEL, **change)
    if message is None:
        bank.check(other)
        return
    with pytest.raises(BankMismatchError, match="fitted for another model") as caught:
        bank.check(other)
    assert message in str(caught.value)
    assert "fit a bank for this one" in str(caught.value)


REWRITTEN = replace(MODEL, model_id="model-4bit", revision=None, fingerprint="e" * 64)


def test_a_rewritten_copy_passes_only_by_the_name_of_its_base(bank):
    with pytest.raises(
        BankMismatchError, match=r"weights: .*quantised or rewritten copy of it, say --fitted-on org/model"
    ):
        bank.check(REWRITTEN)
    assert bank.check(REWRITTEN, fitted_on="org/model") == "org/model"
    assert bank.check(MODEL, fitted_on="org/model") is None
    for model in (REWRITTEN, MODEL):
        with pytest.raises(BankMismatchError, match=r"was fitted on 'org/model', but --fitted-on .* says 'base'"):
            bank.check(model, fitted_on="base")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 16}, "width: bank 8, model 16"),
        ({"num_layers": 7}, "number of layers: bank 6, model 7"),
        ({"model_type": "qwen2_vl"}, "model type: bank 'llava', model 'qwen2_vl'"),
    ],
)
def test_a_name_makes_no_copy_of_a_model_of_another_kind(bank, change, message):
    with pytest.raises(BankMismatchError, match=message) as caught:
        bank.check(replace(REWRITTEN, **change), fitted_on="org/model")
    assert "--fitted-on" not in str(caught.value)


def test_pictures(bank):
    assert (bank.pictures, bank.shared_pictures(["a"])) == (frozenset(), 0)
    fitted = bank.with_provenance(pictures=["a", "b", "c"])
    assert fitted.pictures == {"a", "b", "c"}
    assert fitted.shared_pictures(["b", "c", "c", "d"]) == 2


def test_warnings(bank):
    assert bank.warnings == ()
    many = {
        ("text", 0): Entry(4, rows=9, distinct_rows=3, empty_clusters=1),
        ("text", 2): Entry(4, empty_clusters=2),
    }
    many["vision", 3] = Entry(4, rows=9, distinct_rows=9, empty_clusters=0, dropped_rows=5)
    few, empty, dropped, copies = replace(bank, entries=many).with_provenance(copies=2).warnings
    assert few.startswith("text.0: only 3 of its 9 rows differ, fewer than its 4 centroids, so centroids repeat")
    assert empty.startswith("text.2: 2 of its 4 clusters are empty")
    assert dropped.startswith("vision.3: 5 rows were left out")
    assert copies.startswith("2 of its pictures are copies of others under another name")


def test_load_checks_the_model(bank, tmp_path):
    bank.save(tmp_path / "b")
    with pytest.raises(BankMismatchError, match="number of layers: bank 6, model 28"):
        CentroidBank.load(tmp_path / "b", replace(MODEL, num_layers=28))


def test_a_real_model_and_its_retrained_twin():
    model, twin = tiny("llava"), tiny("llava", seed=1)
    bank = CentroidBank.from_arrays(model, arrays(("text", 2), width=64))
    assert bank.model == identify(model)
    bank.check(model)
    bank.check(model.bfloat16())
    with pytest.raises(BankMismatchError, match="weights: bank"):
        bank.check(twin)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, BankError, "at least one"),
        ({("text", 6): np.ones((2, 8))}, BankMismatchError, r"layer 6 is out of range; .* layers 0 to 5"),
        ({("text", -1): np.ones((2, 8))}, BankMismatchError, "layer -1 is out of range"),
        (
            {("text", 1): np.ones((2, 9))},
            BankMismatchError,
            r"text.1 has width 9, but org/model has hidden size 8",
        ),
        ({("audio", 1): np.ones((2, 8))}, BankError, r"\('audio', 1\) is no \(modality, layer\) pair"),
        ({("text", "1"): np.ones((2, 8))}, BankError, "is no"),
        ({"text.1": np.ones((2, 8))}, BankError, "is no"),
        ({("text", 1): np.ones((2, 8), int)}, BankError, "array of int64; expected floating point"),
        ({("text", 1): np.array([object()])}, BankError, "array of object"),
        ({("text", 1): torch.ones(2, 8, dtype=torch.int32)}, BankError, "torch.int32 of shape"),
        ({("text", 1): np.ones(8)}, BankError, r"shape \(8,\)"),
        ({("text", 1): np.ones((0, 8))}, BankError, "at least one centroid"),
        ({("text", 1): np.array([[np.nan] * 8, [1.0] * 8])}, BankError, "1 of 2 centroids are not finite"),
        ({("text", 1): np.full((2, 8), 1e300)}, BankError, "2 of 2 centroids are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_wrong_arrays(given, error, message):
    with pytest.raises(error, match=message):
        CentroidBank.from_arrays(MODEL, given)


def test_provenance_has_to_be_json():
    with pytest.raises(BankError, match="provenance can't be written as JSON"):
        CentroidBank.from_arrays(MODEL, arrays(("text", 1)), data={1, 2})


def test_entries_have_to_fit_tensors():
    with pytest.raises(BankError, match=r"tensors are there for text.1, but entries for text.2"):
        CentroidBank(MODEL, arrays(("text", 1)), {("text", 2): Entry(4)})


def test_changing_the_arrays_later_does_not_change_the_bank():
    given = arrays(("text", 1))
    bank = CentroidBank.from_arrays(MODEL, given)
    given["text", 1].zero_()
    assert bank.tensors["text", 1].abs().sum() > 0


def write_npz(path, **content):
    np.savez(path, **content)
    return path


def test_npz_of_the_reference_release(tmp_path):
    text, seen = np.random.default_rng(0).standard_normal((2, 4, 8))
    path = write_npz(tmp_path / "c.npz", text_centroids=text, vis_centroids=seen.astype(np.float16))
    bank = CentroidBank.from_npz(path, MODEL, text_layer=2, vision_layer=4)
    assert (bank.layers("text"), bank.layers("vision")) == ((2,), (4,))
    assert torch.equal(bank.tensors["text", 2], torch.from_numpy(text).float())
    assert bank.provenance["data"] == "c.npz"

    note = {"text_layer": 1, "vision_layer": 5, "prompt": "p"}
    path = write_npz(tmp_path / "d.npz", text_centroids=text, vis_centroids=seen, metadata_json=json.dumps(note))
    bank = CentroidBank.from_npz(path, MODEL)
    assert (bank.layers("text"), bank.layers("vision")) == ((1,), (5,))
    assert bank.provenance["metadata"] == note

    path = write_npz(tmp_path / "e.npz", text_centroids=text)
    assert CentroidBank.from_npz(path, MODEL, text_layer=0).layers("vision") == ()
    with pytest.raises(BankMismatchError, match="layer 12 is out of range"):
        CentroidBank.from_npz(path, MODEL)


def test_npz_that_is_none(tmp_path):
    with pytest.raises(BankError, match=r"holds other; expected text_centroids or vis_centroids"):
        CentroidBank.from_npz(write_npz(tmp_path / "a.npz", other=np.ones(2)), MODEL)
    with pytest.raises(BankError, match="metadata_json is not JSON"):
        CentroidBank.from_npz(
            write_npz(tmp_path / "b.npz", text_centroids=np.ones((2, 8)), metadata_json="{"), MODEL
        )
    with pytest.raises(BankError, match=r"can't be read as .npz without pickle"):
        CentroidBank.from_npz(
            write_npz(tmp_path / "c.npz", text_centroids=np.array([object()], dtype=object)), MODEL
        )
    damaged = write_npz(tmp_path / "d.npz", text_centroids=np.ones((200, 8)))
    damaged.write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(BankError, match="can't be read"):
        CentroidBank.from_npz(damaged, MODEL)
    with pytest.raises(BankError, match="does not exist"):
        CentroidBank.from_npz(tmp_path / "none.npz", MODEL)
    with pytest.raises(BankError, match="is a folder"):
        CentroidBank.from_npz(tmp_path, MODEL)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BankError, match="can't be read"):
        CentroidBank.from_npz(tmp_path / "text.npz", MODEL)


def test_from_pretrained_reads_local_paths(bank, tmp_path):
    bank.save(tmp_path / BANK_FILE)
    for path in (tmp_path, str(tmp_path / BANK_FILE)):
        assert CentroidBank.from_pretrained(path, model=MODEL).entries == bank.entries
    with pytest.raises(BankError, match="is a local path, which has no revision 'main'"):
        CentroidBank.from_pretrained(tmp_path, revision="main")


def test_from_pretrained_says_what_the_hub_lacks(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(BankError, match=r"org/bank is no local path, .* at revision v1: no connection"):
        CentroidBank.from_pretrained("org/bank", revision="v1")
    monkeypatch.undo()
    with pytest.raises(BankError, match=r"/no/such/path is no local path"):
        CentroidBank.from_pretrained("/no/such/path")


def test_hub_calls(bank, tmp_path, monkeypatch):
    """What is sent and asked for; the hub itself is patched away, so this is no proof that it accepts it."""
    from huggingface_hub import HfApi

    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **o: sent.update(repo=repo_id, **o))

    def upload(self, *, path_or_fileobj, path_in_repo, repo_id, revision, commit_message):
        (tmp_path / path_in_repo).write_bytes(path_or_fileobj)
        sent.update(file=path_in_repo, to=repo_id)
        return "https://hub/commit/1"

    monkeypatch.setattr(HfApi, "upload_file", upload)
    assert bank.push_to_hub("org/bank", private=True) == "https://hub/commit/1"
    assert sent == {"repo": "org/bank", "private": True, "exist_ok": True, "file": BANK_FILE, "to": "org/bank"}
    asked = {}

    def download(repo_id, filename, revision=None):
        asked.update(repo=repo_id, file=filename, revision=revision)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    back = CentroidBank.from_pretrained("org/bank", revision="v1", model=MODEL)
    assert asked == {"repo": "org/bank", "file": BANK_FILE, "revision": "v1"}
    assert back.entries == bank.entries
