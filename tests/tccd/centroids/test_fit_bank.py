import numpy as np
import pytest
import torch

from tccd.centroids.bank import CentroidBank
from tccd.centroids.fit import choose, fit_bank
from tccd.centroids.kmeans import kmeans
from tccd.errors import ConfigError, FitError
from tests.tccd.centroids.fakes import TinyProcessor, samples
from tests.tccd.centroids.test_harvest import oracle
from tests.tiny import cached_tiny


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
        assert np.array_equal(bank.centroids(modality, int(layer)).numpy(), expected.centroids)
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
    assert torch.equal(one.centroids("text", 1), two.centroids("text", 1))


def test_progress():
    seen = []
    fit(progress=lambda *a: seen.append(a))
    assert seen[:4] == [("harvest", i, 4) for i in (1, 2, 3, 4)]
    assert seen[4:] == [(n, i, 1) for n in ("text.1", "text.2", "vision.2") for i in (0, 1)]


def test_too_few_rows_says_where():
    with pytest.raises(FitError, match=r"text.1: \d+ finite rows of \d+ are fewer than k = 500"):
        fit(k=500)


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
