"""A harvest goes on from what it is sure of: every other file in its folder is refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tccd.centroids.harvest import harvest
from tccd.centroids.shards import _KEY
from tccd.data.pictures import picture_digest
from tccd.errors import BusyError, DataError, FitError
from tccd.locking import locked
from tests.faults import full_disks, kills, small_disks
from tests.tccd.centroids.fakes import TinyProcessor, TinySample, samples
from tests.tccd.centroids.test_harvest import run
from tests.tiny import cached_tiny

SECOND = "batch-000001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "work")
    return tmp_path / "work"


def read(path):
    with safe_open(path, framework="pt") as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}, shard.metadata()  # noqa: SIM118


def refused(folder, message, **options):
    with pytest.raises(FitError, match=message) as caught:
        run(folder, **options)
    return str(caught.value)


class Painted(TinySample):
    """A sample whose image can be painted over, under the same name; counts how often it is read."""

    color = None
    reads = 0

    @property
    def image(self):
        self.reads += 1
        return Image.new("RGB", (4, 4), self.color or (self.number, 0, 0))


def painted():
    return [Painted(s.number, s.prompt) for s in samples(10)]


def test_an_image_that_changed_under_its_name_is_found(folder):
    given = painted()
    _, processor = run(folder, given=given)
    assert (processor.calls, [s.reads for s in given]) == (0, [1] * 10)
    given[4].color = (4, 0, 1)
    told = refused(
        folder, "was harvested from another picture of sample 's4': what the image shows has changed", given=given
    )
    assert SECOND in told
    (folder / SECOND).unlink()
    _, processor = run(folder, given=given)
    assert processor.calls == 1


def test_each_image_is_read_once_for_rows_and_digest(tmp_path):
    given = painted()
    found, _ = run(tmp_path, given=given)
    assert [s.reads for s in given] == [1] * 10
    assert found.manifest["pictures"] == [picture_digest(s.image) for s in given]
    assert found.manifest["copies"] == 0


def test_copies_under_other_names_are_counted(tmp_path):
    given = painted()
    given[3].color = given[7].color = (0, 0, 0)  # as the first
    found, _ = run(tmp_path, given=given)
    assert (found.manifest["copies"], len(found.manifest["pictures"])) == (2, 8)
    given[9].image_id = given[8].image_id = "one picture, two questions"
    given[9].color = given[8].color = (8, 0, 0)
    found, _ = run(tmp_path / "two", given=given)
    assert found.manifest["copies"] == 2


def test_rows_that_were_edited(folder):
    rows, metadata = read(folder / SECOND)
    rows["text.1"][0, 0] += 1
    save_file(rows, folder / SECOND, metadata)
    assert SECOND in refused(folder, "was changed after it was written; delete it, and")


@pytest.mark.parametrize(
    ("name", "value"),
    [("short_tails", 0), ("rows", {"text.1": 1}), ("pictures", ["0" * 16] * 3), ("samples", "0"), ("more", 1)],
)
def test_a_note_that_was_edited(folder, name, value):
    rows, metadata = read(folder / SECOND)
    metadata[_KEY] = json.dumps({**json.loads(metadata[_KEY]), name: value})
    save_file(rows, folder / SECOND, metadata)
    assert SECOND in refused(folder, "was changed after it was written")


def test_a_shard_of_another_version(folder):
    rows, metadata = read(folder / SECOND)
    note = json.loads(metadata[_KEY])
    save_file(rows, folder / SECOND, {_KEY: json.dumps({n: note[n] for n in ("samples", "first", "rows")})})
    assert SECOND in refused(folder, "holds no checksum: an older version of tccd made it; delete it")
    save_file(rows, folder / SECOND, {_KEY: "[]"})
    refused(folder, "holds no checksum")


def test_a_shard_of_another_harvest(folder, tmp_path):
    run(tmp_path / "other", text_tokens=4)
    shutil.copy(tmp_path / "other" / SECOND, folder / SECOND)
    assert SECOND in refused(folder, "was harvested with other settings than the rest of its folder")


def test_a_shard_of_another_batch(folder):
    shutil.copy(folder / "batch-000000.safetensors", folder / SECOND)
    assert SECOND in refused(folder, "other samples: batch 2 began with 's0' there, and begins with 's3' now")


def test_every_cut_and_every_flipped_byte_is_found(folder):
    sound = (folder / SECOND).read_bytes()
    contents = [sound[:size] for size in (0, 1, 7, 8, 9, 100, len(sound) // 2, len(sound) - 1)]
    contents += [b"{" * 10**5, (10**9).to_bytes(8, "little") + b"{}", b"\x80\x04." * 9, sound + b"x"]
    deep = b'{"__metadata__":' + b"[" * 10**5
    contents += [len(deep).to_bytes(8, "little") + deep]
    contents += [sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :] for at in range(0, len(sound), 97)]
    for content in contents:
        (folder / SECOND).write_bytes(content)
        assert SECOND in refused(folder, r"is damaged|was changed|holds no checksum")
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()
    assert SECOND in refused(folder, "is damaged")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"settings": 3}', '{"settings": {}}', "[" * 10**5, "\udcff"]
)
def test_a_manifest_that_is_none(folder, content):
    (folder / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    told = refused(folder, r"manifest.json is damaged .*delete the folder, or give another")
    no_json = content in ("", "{", "\udcff")
    assert ("(it does not describe a harvest)" in told) != no_json


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"tccd_bank": "{}"}])
def test_a_file_of_another_kind_under_a_shards_name(folder, metadata):
    save_file({"text.1": torch.ones(2, 4)}, folder / SECOND, metadata)
    refused(
        folder, rf"{SECOND} is damaged \(it holds no hidden states\); delete it, and the harvest makes it again"
    )


def test_equal_weights_under_another_name_go_on(folder):
    model = cached_tiny("llava")
    name = model.config._name_or_path
    try:
        model.config._name_or_path = "another/name"
        _, processor = run(folder)
    finally:
        model.config._name_or_path = name
    assert processor.calls == 0


def test_one_folder_one_run(tmp_path):
    with locked(tmp_path, "tccd fit"), pytest.raises(BusyError, match=r"is in use by tccd fit \(process \d+"):
        run(tmp_path)
    run(tmp_path)


def test_prompts_that_cannot_be_asked_are_refused_before_the_first_forward(tmp_path):
    given = samples(10)
    processor = TinyProcessor("llava")
    given[9] = TinySample(9, "what is @ this")
    options = {"layers": {"text": 1}, "prompt": None, "batch_size": 3}
    with pytest.raises(DataError, match="sample s9: the prompt holds '@'"):
        harvest(cached_tiny("llava"), processor, given, out_dir=tmp_path, **options)
    given[9] = TinySample(9, "x" * 520)
    with pytest.raises(DataError, match="sample s9: the prompt has 521 tokens without its picture"):
        harvest(cached_tiny("llava"), processor, given, out_dir=tmp_path, **options)
    assert processor.calls == 0
    with pytest.raises(DataError, match="sample s9: the prompt has 521 tokens without its picture"):
        harvest(cached_tiny("llava"), processor, iter(given), out_dir=tmp_path, **options)
    assert processor.calls == 3
    given[9] = TinySample(9, "x" * 505)
    with pytest.raises(
        DataError, match="sample s9: the prompt has 516 tokens with its picture, but the model reads at most 512"
    ):
        harvest(cached_tiny("llava"), processor, given, out_dir=tmp_path, **options)


# Faults

OPTIONS = {"count": 3, "layers": {"text": 1}, "batch_size": 2, "vision_mean": True}


def work(folder):
    return run(folder, **OPTIONS)[0].manifest["rows"]


def check(expected, folder):
    assert {p.suffix for p in folder.glob("[!.]*")} <= {".safetensors", ".json"}
    found, _ = run(folder, **OPTIONS)
    assert np.array_equal(found.rows("text", 1)[:], expected.rows("text", 1)[:])
    assert torch.equal(found.vision_sums().mean()[0], expected.vision_sums().mean()[0])
    assert found.manifest == expected.manifest
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("faults", [kills, full_disks, small_disks])
def test_a_harvest_that_met_a_fault_at_any_write_goes_on(tmp_path, faults):
    expected, _ = run(tmp_path / "expected", **OPTIONS)
    met = 0
    for fault in faults(work, tmp_path):
        assert (
            fault.error is None
            or "isk is full" in fault.error
            or "of free room" in fault.error
            or "Errno 28" in fault.error
        ), fault
        check(expected, fault.folder)
        met += 1
    assert met > (2 if faults is small_disks else 20)


def test_a_disk_with_too_little_room_is_told_after_the_first_batch(tmp_path):
    def many(folder):
        processor = TinyProcessor("llava")
        try:
            harvest(cached_tiny("llava"), processor, samples(60), {"vision": (1, 2)}, folder, prompt=None)
        except FitError as error:
            return processor.calls, str(error)
        return processor.calls, ""

    faults = list(small_disks(many, tmp_path, step=2**16, done=lambda result: result[1] == ""))
    told = [fault.result for fault in faults if fault.result]  # the smallest has no room for the first batch
    assert [calls for calls, _ in told] == [1] * len(told) != []
    assert "KiB of free room, but the hidden states of the other 7 batches need about" in told[0][1]


def test_rows_are_those_of_the_dtype_in_the_checksum(folder):
    rows, metadata = read(folder / SECOND)
    save_file({name: part.view(torch.int32) for name, part in rows.items()}, folder / SECOND, metadata)
    refused(folder, "was changed after it was written")
