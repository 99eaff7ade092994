"""A bank's vision mean: kept beside centroids or alone, refused where it can't be one, told to whoever looks."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tccd.centroids import bankfile
from tccd.centroids.bank import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.errors import BankError, BankMismatchError
from tests.faults import kills

MODEL = ModelIdentity("org/model", None, "llava", hidden_size=8, num_layers=6, fingerprint="f" * 64)
MEAN = torch.arange(48.0).reshape(6, 8)
KNOWN = {"images": 120, "tokens": 480, "dropped_states": 0}


def bank(arrays=None, mean=MEAN, **known):
    made = CentroidBank.from_arrays(MODEL, {("text", 2): torch.ones(3, 8)} if arrays is None else arrays, mean)
    return made.with_provenance(**known)


def test_it_comes_back_beside_centroids_and_alone(tmp_path):
    for name, arrays in (("both", None), ("alone", {})):
        made = bank(arrays, vision_mean=KNOWN)
        made.save(tmp_path / name)
        back = CentroidBank.load(tmp_path / name, MODEL)
        assert torch.equal(back.vision_mean, MEAN)
        assert back.vision_mean.dtype == torch.float32
        assert back.provenance == {"vision_mean": KNOWN}
        assert set(back.tensors) == set(made.tensors)
    assert torch.equal(load_file(tmp_path / "alone")["vision_mean"], MEAN)
    assert repr(bank()) == "CentroidBank(org/model: text.2 k=3, vision_mean; width 8)"
    assert repr(bank({}, images=120)) == "CentroidBank(org/model: vision_mean; width 8, images 120)"


def test_a_bank_without_one_has_none(tmp_path):
    made = bank(mean=None)
    made.save(tmp_path / "bank")
    assert CentroidBank.load(tmp_path / "bank").vision_mean is None
    assert made.with_provenance(images=1).vision_mean is None
    assert torch.equal(bank().with_provenance(images=1).vision_mean, MEAN)


def test_centroids_that_a_mean_alone_does_not_have():
    with pytest.raises(BankMismatchError, match=r"no text centroids at layer 2; it holds a vision mean\. "):
        bank({}).centroids("text", 2)
    with pytest.raises(BankMismatchError, match=r"at layer 3; it holds text.2, a vision mean\. "):
        bank().centroids("text", 3)
    with pytest.raises(BankError, match=r"at least one .* entry, or a vision mean"):
        bank({}, None)


def test_arrays_of_any_floating_type_are_copied():
    given = MEAN.numpy().astype(np.float64)
    made = bank(mean=given)
    given[:] = 0
    assert torch.equal(made.vision_mean, MEAN)
    assert torch.equal(bank(mean=MEAN.bfloat16()).vision_mean, MEAN)


def spoilt(value):
    mean = MEAN.clone()
    mean[2, 3] = mean[4, 0] = value
    return mean


@pytest.mark.parametrize(
    ("mean", "error", "message"),
    [
        (spoilt(float("nan")), BankError, r"vision_mean: its rows of layers \[2, 4\] are not finite; refit"),
        (spoilt(float("-inf")), BankError, "are not finite"),
        (MEAN[:5], BankMismatchError, "vision_mean has 5 rows, but org/model has 6 decoder layers"),
        (MEAN[:, :7], BankMismatchError, "vision_mean has width 7, but org/model has hidden size 8; this mean"),
        (MEAN[0], BankError, r"vision_mean is .*shape \(8,\); expected a floating-point \(num_layers, hidden\)"),
        (MEAN.int(), BankError, "vision_mean is torch.int32"),
        (np.ones((6, 8), int), BankError, "vision_mean is an array of int64; expected floating point"),
        ("mean", BankError, "vision_mean is an array of <U4"),
    ],
)
def test_what_can_not_be_one(mean, error, message):
    with pytest.raises(error, match=message):
        bank(mean=mean)


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (MEAN[None], r"has shape \(1, 6, 8\); expected \(6, 8\)"),
        (MEAN[:5], "has 5 rows"),
        (MEAN[:0], "has 0 rows"),
        (spoilt(float("inf")), "are not finite"),
        (MEAN.half(), "is torch.float16; expected torch.float32"),
    ],
)
def test_files_that_hold_what_can_not_be_one(tmp_path, mean, message):
    path = tmp_path / "bank.safetensors"
    bank().save(path)
    tensors, content = bankfile.unpack(path)
    path.write_bytes(bankfile.pack(tensors | {"vision_mean": mean.contiguous()}, content))
    with pytest.raises(BankError, match=rf"{path.name}: .*vision_mean {message}|: vision_mean: .*{message}"):
        CentroidBank.load(path)


def test_no_part_of_it_can_be_changed_or_taken_away_unseen(tmp_path):
    path = tmp_path / "bank.safetensors"
    bank().save(path)
    tensors, content = bankfile.unpack(path)
    sound = path.read_bytes()
    for at in range(len(sound) - MEAN.numel() * 4, len(sound), 5):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(BankError, match="changed after it was saved"):
            CentroidBank.load(path)
    stated = bankfile.pack(tensors, content)
    del tensors["vision_mean"]
    shorter = bankfile.pack(tensors, content)
    checksum = stated[stated.index(b"checksum") :][:90]
    path.write_bytes(shorter.replace(shorter[shorter.index(b"checksum") :][:90], checksum))
    with pytest.raises(BankError, match="changed after it was saved"):
        CentroidBank.load(path)


class Forgetful(CentroidBank):
    """A writer with a fault: it leaves the mean out, or writes another."""

    other = None

    def _bytes(self):
        return CentroidBank.from_arrays(self.model, self.tensors, self.other)._bytes()


@pytest.mark.parametrize("other", [None, MEAN + 1])
def test_a_mean_that_does_not_come_back_is_not_saved(tmp_path, monkeypatch, other):
    monkeypatch.setattr(Forgetful, "other", other)
    made = bank()
    faulty = Forgetful(made.model, made.tensors, made.entries, vision_mean=made.vision_mean)
    with pytest.raises(BankError, match="reads back as another bank"):
        faulty.save(tmp_path / "bank")


def test_at_every_write_the_old_mean_or_the_new_one_is_there(tmp_path):
    def prepare(folder):
        bank().save(folder / "bank")

    held = set()
    for fault in kills(lambda folder: bank(mean=-MEAN).save(folder / "bank"), tmp_path, prepare):
        mean = CentroidBank.load(fault.folder / "bank").vision_mean
        assert torch.equal(mean.abs(), MEAN), fault
        held.add(float(mean[0, 1]))
    assert 1.0 in held


def test_few_images_are_told():
    assert bank(vision_mean=KNOWN).warnings == ()
    few, dropped = bank(vision_mean={"images": 99, "tokens": 9, "dropped_states": 7}).warnings
    assert few.startswith("its vision mean is of 99 images; of fewer than 100 the reference mean-vision may harm")
    assert dropped.startswith("its vision mean leaves out 7 states because they held a value that is not finite")
    assert bank(vision_mean="hello").warnings == bank(vision_mean={"images": "few"}).warnings == ()
