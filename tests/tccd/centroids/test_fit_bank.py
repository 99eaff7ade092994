import numpy as np
import pytest
import torch

from tccd.centroids.bank import CentroidBank
from tccd.centroids.fit import choose, fit_bank
from tccd.centroids.kmeans import kmeans
from tccd.data.pictures import picture_digest
from tccd.errors import BusyError, ConfigError, FitError
from tests.faults import kills
from tests.tccd.centroids.fakes import TinyProcessor, TinySample, samples
from tests.tccd.centroids.test_harvest import oracle
from tests.tiny import cached_tiny


@pytest.fixture(autouse=True)
def _kept_harvests_go_with_the_test(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))


def fit(family="llava", given=None, **options):
    options = {"layers": {"text": (1, 2), "vision": 2}, "k": 4, "prompt": None, "batch_size": 3, **options}
    options = {"text_tokens": 5, "backend": "faiss-cpu", "created": "2026-01-01", **options}
    given = samples(10) if given is None else given
    return fit_bank(cached_tiny(family), TinyProcessor(family), given, **options)


@pytest.mark.parametrize("backend", ["faiss-cpu", "sklearn"])
def test_centroids_are_k_means_of_the_harvest(backend):
    bank = fit(backend=backend, data="shapes")
    for name, rows in oracle("llava").items():
        modality, layer = name.split(".")
        expected = kmeans(rows, 4, backend=backend)
        assert np.array_equal(bank.tensors[modality, int(layer)].numpy(), expected.centroids)
        entry = bank.entries[modality, int(layer)]
        assert (entry.k, entry.rows, entry.seed, entry.backend) == (4, len(rows), 42, backend)
        assert entry.inertia == expected.inertia
    bank.check(cached_tiny("llava"))
    known = {"data": "shapes", "images": 10, "prompt": None, "text_tokens": 5, "created": "2026-01-01"}
    assert known.items() <= bank.provenance.items()


def test_the_same_arguments_give_the_same_file(tmp_path):
    for name in "ab":
        fit().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert CentroidBank.load(tmp_path / "a", cached_tiny("llava")).layers("text") == (1, 2)
    fit(seed=1).save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    assert fit(created=None).provenance["created"].startswith("20")


def test_work_dir_is_kept_and_resumed(tmp_path):
    processor = TinyProcessor("llava")
    options = {"layers": {"text": 1}, "k": 4, "prompt": None, "work_dir": tmp_path / "w", "created": "x"}
    one = fit_bank(cached_tiny("llava"), processor, samples(10), **options)
    calls = processor.calls
    two = fit_bank(cached_tiny("llava"), processor, samples(10), **options)
    assert processor.calls == calls
    assert torch.equal(one.tensors["text", 1], two.tensors["text", 1])


def test_progress():
    seen = []
    fit(progress=lambda *a: seen.append(a))
    assert seen[:4] == [("harvest", i, 4) for i in (1, 2, 3, 4)]
    assert seen[4:] == [(n, i, 1) for n in ("text.1", "text.2", "vision.2") for i in (0, 1)]


def test_rows_left_out_are_recorded():
    entry = fit(max_rows=20).entries["vision", 2]
    assert (entry.rows, entry.sampled_out_rows) == (20, 70)


def test_wrong_images():
    with pytest.raises(ConfigError, match="images is 0; expected a positive integer or None"):
        fit(images=0)


class Shared:
    def __init__(self, number, image_id):
        self.id, self.image_id = f"s{number}", image_id


def test_choosing_samples():
    given = samples(20)
    picked = list(choose(given, 5, seed=0))
    assert len(picked) == 5
    assert [s.number for s in picked] == sorted(s.number for s in picked)
    assert picked == list(choose(given, 5, seed=0)) != list(choose(given, 5, seed=1))
    assert list(choose(given, None, 0)) == list(choose(given, 99, 0)) == given
    assert list(choose(iter(given), 3, seed=0)) == given[:3]
    assert list(choose(given, 5, 0)[1:3]) == picked[1:3]


def test_one_sample_of_each_image():
    given = [Shared(i, i // 3) for i in range(12)]
    assert [s.id for s in choose(given, None, 0, one_each=True)] == ["s0", "s3", "s6", "s9"]
    assert [s.id for s in choose(iter(given), 2, 0, one_each=True)] == ["s0", "s3"]
    assert len(list(choose(given, 3, 0, one_each=True))) == 3


def test_a_fixed_prompt_uses_each_image_once():
    given = samples(9)
    for s in given:
        s.image_id = s.number // 3
    assert fit(given=given, prompt="xxxxx").provenance["images"] == 3
    assert fit(given=given).provenance["images"] == 9


# Refused early, and kept late


class Forbidden(TinyProcessor):
    def __call__(self, *args, **options):
        raise AssertionError("a prompt was run")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"k": 51},
            FitError,
            r"text: 10 samples give at most 50 rows \(5 each\), fewer than k = 51; give more images",
        ),
        (
            {"k": 21, "layers": {"vision": 1}, "max_vision_tokens_per_image": 2},
            FitError,
            "vision: .* at most 20 rows",
        ),
        ({"k": 50, "images": 9}, FitError, "text: 9 samples give at most 45 rows"),
        ({"k": 4, "max_rows": 3}, ConfigError, "k is 4, above the 3 rows"),
        ({"backend": "faiss-gpu"}, FitError, "reports no GPU"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"iterations": 0}, ConfigError, "iterations is 0"),
    ],
)
def test_what_can_be_refused_before_the_first_forward_is(change, error, message):
    options = {"layers": {"text": 1}, "k": 4, "prompt": None, "text_tokens": 5, **change}
    with pytest.raises(error, match=message):
        fit_bank(cached_tiny("llava"), Forbidden("llava"), samples(10), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"vision": 1}, "k": 400}, r"vision.1: the first 2 samples gave 18 rows, so 10 give about 90"),
        (
            {"layers": {"text": 1}, "k": 55, "prompt": "xxx"},
            "text.1: the first 2 samples gave 6 rows, so 10 give about 30",
        ),
    ],
)
def test_too_few_rows_are_told_after_the_first_batch(change, message):
    processor = TinyProcessor("llava")
    options = {"prompt": None, "text_tokens": 9, "batch_size": 2, **change}
    with pytest.raises(FitError, match=message):
        fit_bank(cached_tiny("llava"), processor, samples(10), **options)
    assert processor.calls == 1


def test_a_failure_after_the_harvest_keeps_it_and_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = {"layers": {"text": 1}, "prompt": None, "text_tokens": 5, "batch_size": 3, "created": "x"}
    with pytest.raises(FitError, match=r"text.1: \d+ finite rows of \d+ are fewer than k = 48") as caught:
        fit_bank(cached_tiny("llava"), TinyProcessor("llava"), samples(10), k=48, **options)
    [kept] = tmp_path.iterdir()
    assert caught.value.__notes__ == [
        f"The hidden states are kept in {kept}; go on with --work-dir {kept} and the same options"
    ]
    bank = fit_bank(cached_tiny("llava"), Forbidden("llava"), samples(10), k=4, work_dir=kept, **options)
    assert bank.pictures == {picture_digest(s.image) for s in samples(10)}
    assert fit_bank(cached_tiny("llava"), TinyProcessor("llava"), samples(10), k=4, **options).model == bank.model
    assert list(tmp_path.iterdir()) == [kept]


def test_a_failure_before_the_first_shard_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(AssertionError, match="a prompt was run"):
        fit_bank(cached_tiny("llava"), Forbidden("llava"), samples(10), layers={"text": 1}, k=4)
    assert list(tmp_path.iterdir()) == []


def test_a_fit_holds_its_folder_until_the_bank_is_made(tmp_path):
    def during(stage, done, total):
        with pytest.raises(BusyError, match="is in use by tccd fit"):
            fit_bank(
                cached_tiny("llava"), Forbidden("llava"), samples(10), layers={"text": 1}, k=4, work_dir=tmp_path
            )

    fit(work_dir=tmp_path, progress=during)


def test_what_a_reader_has_to_know_is_kept_in_the_bank():
    given = [TinySample(1, "xxxx") for _ in range(6)]
    for number, sample in enumerate(given):
        sample.image_id = number
    bank = fit(given=given, k=8, layers={"text": 1}, batch_size=1)
    assert bank.entries["text", 1].distinct_rows == 4
    assert (bank.provenance["copies"], len(bank.pictures)) == (5, 1)
    few, images, copies = bank.warnings
    assert few.startswith("text.1: only 4 of its 24 rows differ, fewer than its 8 centroids")
    assert images.startswith("its vision mean is of 1 images; of fewer than 100")
    assert copies.startswith("5 of its pictures are copies")


@pytest.mark.parametrize("layers", [{"text": 1}, None])
def test_a_fit_killed_at_any_write_ends_in_the_same_bank(tmp_path, layers):
    def work(folder):
        bank = fit(given=samples(3), layers=layers, k=2, batch_size=1, work_dir=folder / "work")
        bank.save(folder / "bank.safetensors")

    (tmp_path / "whole").mkdir()
    work(tmp_path / "whole")
    expected = (tmp_path / "whole" / "bank.safetensors").read_bytes()
    met = 0
    for fault in kills(work, tmp_path):
        bank = fault.folder / "bank.safetensors"
        assert not bank.exists() or bank.read_bytes() == expected, fault
        work(fault.folder)
        assert bank.read_bytes() == expected, fault
        met += 1
    assert met > 20
