"""What was saved comes back: at every header length, with any number of entries, killed at any write."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tccd.centroids import bankfile
from tccd.centroids.bank import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.errors import BankError
from tests.faults import full_disks, kills, small_disks

MODEL = ModelIdentity("org/model", None, "llava", hidden_size=2, num_layers=40, fingerprint=None)


def bank(entries=1, **provenance):
    keys = [(modality, layer) for layer in range(20) for modality in ("text", "vision")][:entries]
    return CentroidBank.from_arrays(MODEL, {key: torch.ones(1, 2) for key in keys}, **provenance)


def header_length(path):
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def test_every_header_length_loads(tmp_path):
    """Two thousand lengths, of which one in 32 begins with the byte that a pickle begins with."""
    path = tmp_path / "bank.safetensors"
    one = bank(note="")
    start = len(one._bytes())
    lengths = set()
    for size in range(0, 16_000, 8):
        made = one.with_provenance(note="x" * size)
        path.write_bytes(made._bytes())
        assert CentroidBank.load(path).provenance == made.provenance
        lengths.add(header_length(path))
    assert len(lengths) == 2000
    assert {length & 0xFF for length in lengths} == set(range(0, 256, 8))
    assert path.stat().st_size - start >= 15_990


@settings(max_examples=60)
@given(st.integers(1, 40), st.text(max_size=300), st.data())
def test_any_bank_comes_back_as_it_was(tmp_path_factory, entries, note, data):
    path = tmp_path_factory.mktemp("bank") / "b.safetensors"
    made = bank(entries, note=note) if note.isascii() else bank(entries, data=json.dumps(note))
    tensors = {
        key: torch.tensor([[data.draw(st.floats(-(2.0**90), 2.0**90, width=32)), 1.0]]) for key in made.tensors
    }
    made = replace(made, tensors=tensors)
    made.save(path)
    back = CentroidBank.load(path, MODEL)
    assert (back.entries, back.provenance) == (made.entries, made.provenance)
    assert all(torch.equal(back.tensors[key], made.tensors[key]) for key in made.tensors)


def test_a_file_that_begins_as_a_zip_does_but_is_a_bank_loads(tmp_path, monkeypatch):
    """67 MB of header: the length's bytes are those of a zip's first four."""
    monkeypatch.setattr(bankfile, "_MAX_HEADER", 2**27)
    path = tmp_path / "bank.safetensors"
    data = bank()._bytes()
    length, wanted = int.from_bytes(data[:8], "little"), int.from_bytes(b"PK\x03\x04", "little")
    path.write_bytes(
        wanted.to_bytes(8, "little") + data[8 : 8 + length] + b" " * (wanted - length) + data[8 + length :]
    )
    assert path.read_bytes()[:4] == b"PK\x03\x04"
    CentroidBank.load(path)


# Reading back


class Lossy(CentroidBank):
    """A writer with a fault: it drops a byte, or writes another bank."""

    fault = staticmethod(lambda data: data)

    def _bytes(self):
        return self.fault(super()._bytes())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda data: data[:-1], "can't be read back: .* is truncated or damaged"),
        (lambda data: data.replace(b"mark", b"dark"), "can't be read back: .* its checksum is"),
        (lambda data: bank()._bytes(), "reads back as another bank"),
    ],
)
def test_what_does_not_come_back_is_not_saved(tmp_path, monkeypatch, fault, message):
    path = tmp_path / "bank.safetensors"
    bank(note="old").save(path)
    before = path.read_bytes()
    made = bank(note="mark")
    faulty = Lossy(made.model, made.tensors, made.entries, made.provenance)
    monkeypatch.setattr(Lossy, "fault", staticmethod(fault))
    with pytest.raises(BankError, match=f"{path.name} was not saved: what was written {message}"):
        faulty.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Faults

OLD, NEW = bank(3, note="old"), bank(5, note="new" * 2000)


def prepare(folder):
    (folder / "bank.safetensors").write_bytes(OLD._bytes())


def work(folder):
    NEW.save(folder / "bank.safetensors")


@pytest.mark.parametrize("faults", [kills, full_disks, small_disks])
def test_at_every_write_the_old_or_the_new_bank_is_there(tmp_path, faults):
    held = []
    for fault in faults(work, tmp_path, prepare):
        path = fault.folder / "bank.safetensors"
        held.append(CentroidBank.load(path).provenance["note"])
        assert held[-1] in ("old", "new" * 2000), fault
        assert fault.error is None or fault.error.startswith("WriteError: disk is full: could not write"), fault
    assert "old" in held
