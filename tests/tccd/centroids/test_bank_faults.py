"""Every way in which a file can be no sound bank, and what the message says."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tccd.centroids import bankfile
from tccd.centroids.bank import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.errors import BankError, BankMismatchError

MODEL = ModelIdentity("org/model", None, "llava", hidden_size=8, num_layers=6, fingerprint=None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "bank.safetensors"
    generator = torch.Generator().manual_seed(0)
    arrays = {("text", 2): torch.randn(4, 8, generator=generator), ("vision", 3): torch.randn(5, 8)}
    CentroidBank.from_arrays(MODEL, arrays, data="somewhere").save(path)
    CentroidBank.load(path)
    return path


def refused(path, message, error=BankError):
    with pytest.raises(error, match=message) as caught:
        CentroidBank.load(path)
    assert str(path.name) in str(caught.value)


def rewrite(path, tensors=None, **metadata):
    """A file that the format's own writer makes, checksum included, so that only the content is wrong."""
    old, content = bankfile.unpack(path)
    path.write_bytes(bankfile.pack(old if tensors is None else tensors, {**content, **metadata}))


def test_missing(tmp_path):
    refused(tmp_path / "none.safetensors", "does not exist; fit a bank first")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder; expected a file, or a folder with bank.safetensors")


def test_zero_bytes(path):
    path.write_bytes(b"")
    refused(path, r"is empty \(0 bytes\)")


@pytest.mark.parametrize("size", [1, 7, 8, 50])
def test_truncated_in_the_header(path, size):
    path.write_bytes(path.read_bytes()[:size])
    refused(path, "truncated or no safetensors file")


@pytest.mark.parametrize("cut", [1, 100, 280])
def test_truncated_in_the_data(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path, "is truncated or damaged")


def test_bytes_behind_the_end(path):
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "is truncated or damaged")


def test_every_flipped_byte_is_found(path):
    sound = path.read_bytes()
    for at in range(0, len(sound), 7):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(BankError):
            CentroidBank.load(path)


def test_tampered_data(path):
    sound = path.read_bytes()
    path.write_bytes(sound[:-3] + bytes([sound[-3] ^ 1]) + sound[-2:])
    refused(path, "its checksum is .*, but its content has .*; the file was changed after it was saved")


def test_tampered_metadata(path):
    sound = path.read_bytes()
    assert b"somewhere" in sound
    path.write_bytes(sound.replace(b"somewhere", b"elsewhere"))
    refused(path, "the file was changed after it was saved")


def test_not_finite(path):
    tensors, _ = bankfile.unpack(path)
    tensors["text.2"][1, 1] = float("inf")
    rewrite(path, tensors)
    refused(path, r"text.2: 1 of 4 centroids are not finite; refit the bank")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_wrong_dtype(path, dtype):
    tensors, _ = bankfile.unpack(path)
    rewrite(path, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    refused(path, f"is {dtype}; expected torch.float32")


def test_no_entries(path):
    rewrite(path, {}, entries={})
    refused(path, "at least one")


def test_entries_that_do_not_fit(path):
    tensors, _ = bankfile.unpack(path)
    rewrite(path, {"text.2": tensors["text.2"]})
    refused(path, "tensors are there for text.2, but entries for text.2, vision.3")


def test_wrong_width(path):
    rewrite(path, model={**MODEL.__dict__, "hidden_size": 9})
    refused(path, "has width 8, but org/model has hidden size 9", BankMismatchError)


def test_unknown_tensor_name(path):
    rewrite(path, {"weights": torch.ones(4, 8)})
    refused(path, "tensor 'weights' is no centroid entry; expected names such as 'text.12'")


ENTRIES = {name: {"k": k} for name, k in (("text.2", 4), ("vision.3", 5))}


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {}},
        {"model": {**MODEL.__dict__, "num_layers": "6"}},
        {"model": {**MODEL.__dict__, "hidden_size": True}},
        {"model": {**MODEL.__dict__, "model_id": None}},
        {"model": {**MODEL.__dict__, "future": 1}},
        {"entries": 3},
        {"entries": {**ENTRIES, "text.2": 4}},
        {"entries": {**ENTRIES, "text.2": {"k": 4.0}}},
        {"entries": {**ENTRIES, "text.2": {"k": 4, "inertia": "low"}}},
        {"provenance": None},
    ],
)
def test_metadata_of_another_shape(path, change):
    rewrite(path, **change)
    refused(path, "its metadata does not describe a bank")


@pytest.mark.parametrize("pictures", ["0123456789abcdef", [1], {"a": 1}, None])
def test_pictures_that_are_no_digests(path, pictures):
    rewrite(path, provenance={"pictures": pictures})
    refused(path, "is no list of picture digests")


DEEP = "[" * 800 + "]" * 800


@pytest.mark.parametrize(
    "value", ["NaN", "1e999", "-Infinity", '"\\ud800"', "9" * 5000, DEEP, "[" * 10**5 + "]" * 10**5]
)
def test_metadata_that_no_writer_of_banks_makes(path, value):
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    content = header["__metadata__"]["tccd_bank"]
    header["__metadata__"]["tccd_bank"] = content.replace('"somewhere"', value)
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + text[8 + length :])
    refused(path, "the file was changed")


def test_what_is_no_json_is_not_saved(path):
    before = path.read_bytes()
    for value in (float("inf"), {1, 2}, "\ud800"):
        with pytest.raises(BankError, match="can't be written as JSON"):
            CentroidBank.load(path).with_provenance(note=value).save(path)
    assert path.read_bytes() == before


def test_another_format(path):
    rewrite(path, format=2)
    refused(path, "has bank format 2; this version of tccd reads format 1")


@pytest.mark.parametrize("length", [0, 2**63, 10**9, 2**25 + 1])
def test_huge_header_is_never_allocated(path, length):
    sound = path.read_bytes()
    path.write_bytes(length.to_bytes(8, "little") + sound[8:])
    tracemalloc.start()
    refused(path, f"its header claims {length} bytes")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_huge_header_in_a_huge_file(path):
    with open(path, "wb") as file:
        file.write((2**25 + 1).to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**8)
    tracemalloc.start()
    refused(path, "a header has at most 33554432")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_torch_zip(path):
    torch.save({"text.2": torch.ones(4, 8)}, path)
    refused(path, "is a pickle or zip archive .* never loaded as a bank; import an .npz with")


def test_pickle_is_never_run(path, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path.write_bytes(pickle.dumps(Trap()))
    refused(path, "is a pickle or zip archive")
    path.write_bytes(pickle.dumps(Trap(), protocol=0))
    refused(path, "no safetensors file")
    assert not (tmp_path / "sprung").exists()


@given(st.integers(1, 2**25 // 256), st.sampled_from([0x80, 0x280, 0x480]), st.booleans())
def test_a_header_length_that_begins_as_a_pickle_does_is_none(tmp_path_factory, high, low, whole):
    """Such as 400,000: its lowest byte is the one that pickles begin with."""
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    length = min(256 * high + low, 2**25)
    with open(path, "wb") as file:
        file.write(length.to_bytes(8, "little") + b"\xfe")
        file.truncate(8 + length if whole else 100)
    refused(path, "its header is not JSON" if whole and length > 92 else "is truncated or no safetensors file")


def test_safetensors_of_something_else(path):
    save_file({"model.embed": torch.ones(4, 8)}, path)
    refused(path, "is a safetensors file of something else .*model.embed")
    save_file({"model.embed": torch.ones(4, 8)}, path, {"format": "pt"})
    refused(path, "something else")


def raw(path, header):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "its header is not JSON"),
        (b"\xff\xfe\x00", "its header is not JSON"),
        (b"[" * 50_000, "its header is not JSON"),
        ([1], "its header is no JSON object"),
        ({"__metadata__": 3}, "something else"),
        ({"__metadata__": {"tccd_bank": 3}}, "something else"),
        ({"__metadata__": {"tccd_bank": "{"}}, "its 'tccd_bank' metadata is not JSON; the file was changed"),
        ({"__metadata__": {"tccd_bank": "[]"}}, "metadata is no JSON object"),
        ({"__metadata__": {"tccd_bank": "{}"}}, "has bank format None"),
        ({"__metadata__": {"tccd_bank": '{"format": 1}'}}, "its checksum is None"),
        (
            {"__metadata__": {"tccd_bank": '{"format": 1}'}, "text.2": {"dtype": "F32", "shape": [2]}},
            "is truncated or damaged",
        ),
        (
            {
                "__metadata__": {"tccd_bank": '{"format": 1}'},
                "text.2": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]},
            },
            "is truncated or damaged",
        ),
    ],
)
def test_headers_of_other_makes(path, header, message):
    raw(path, header)
    refused(path, message)
