import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tccd.centroids import kmeans as module
from tccd.centroids.kmeans import check_kmeans, greedy_start, kmeans
from tccd.errors import ConfigError, FitError, MissingExtraError

INSTALLED = ("faiss-cpu", "sklearn")


@pytest.fixture(params=INSTALLED)
def backend(request):
    pytest.importorskip({"faiss-cpu": "faiss", "sklearn": "sklearn"}[request.param])
    return request.param


def blobs(rows=600, width=16, k=8, seed=0, spread=20.0):
    rng = np.random.default_rng(seed)
    centres = spread * rng.standard_normal((k, width))
    label = np.arange(rows) % k
    x = (centres[label] + rng.standard_normal((rows, width))).astype(np.float32)
    return x, label


def test_finds_separated_clusters(backend):
    x, label = blobs()
    found = kmeans(x, 8, backend=backend)
    means = np.stack([x[label == i].mean(0) for i in range(8)])
    order = np.linalg.norm(means[:, None] - found.centroids, axis=-1).argmin(1)
    assert sorted(order) == list(range(8))
    np.testing.assert_allclose(found.centroids[order], means, atol=1e-3)
    best = sum(((x[label == i] - means[i]) ** 2).sum() for i in range(8))
    assert found.inertia == pytest.approx(best, rel=1e-4)
    assert found.sizes.tolist() == [75] * 8
    assert (found.empty_clusters, found.dropped_rows, found.sampled_out_rows) == (0, 0, 0)
    assert (found.rows, found.backend, found.seed) == (600, backend, 42)
    assert found.backend_version
    assert found.seconds > 0
    assert found.centroids.dtype == np.float32


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**30), rows=st.integers(5, 60), width=st.integers(1, 9), k=st.integers(1, 5))
def test_algebra(seed, rows, width, k):
    x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    found = kmeans(x, k, seed=seed, backend="faiss-cpu")
    distance = ((x[:, None].astype(np.float64) - found.centroids) ** 2).sum(-1)
    assert found.inertia == pytest.approx(distance.min(1).sum(), rel=1e-3, abs=1e-4)
    assert found.sizes.sum() == rows
    assert found.empty_clusters == (found.sizes == 0).sum()
    total = ((x - x.mean(0)) ** 2).sum()
    assert found.inertia <= total * (1 + 1e-4) + 1e-4


def test_large_shared_components_cost_no_precision(backend):
    x, _ = blobs(rows=400, k=4)
    far = x.astype(np.float64)
    far[:, :2] += 5e4
    assert kmeans(far, 4, backend=backend).inertia == pytest.approx(
        kmeans(x, 4, backend=backend).inertia, rel=1e-2
    )


def test_same_seed_same_centroids(backend):
    x = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    one, two = kmeans(x, 16, seed=7, backend=backend), kmeans(x, 16, seed=7, backend=backend)
    assert np.array_equal(one.centroids, two.centroids)
    assert one.inertia == two.inertia
    assert not np.array_equal(one.centroids, kmeans(x, 16, seed=8, backend=backend).centroids)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_centroids_in_another_process(threads):
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    program = (
        "import hashlib, numpy as np; from tccd.centroids.kmeans import kmeans\n"
        "x = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)\n"
        f"for backend in {INSTALLED}:\n"
        "    c = kmeans(x, 32, backend=backend).centroids; print(hashlib.sha256(c.tobytes()).hexdigest())"
    )
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    run = [
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert all(r.returncode == 0 for r in run), run[0].stderr
    assert len(run[0].stdout.split()) == len(INSTALLED)
    assert run[0].stdout == run[1].stdout


def test_rows_that_are_not_finite_are_counted_and_left_out(backend):
    x, _ = blobs()
    dirty = x.copy()
    dirty[3, 1], dirty[70, 0], dirty[70, 2], dirty[599, 5] = np.nan, np.inf, -np.inf, np.nan
    found = kmeans(dirty, 8, backend=backend)
    clean = kmeans(np.delete(x, [3, 70, 599], axis=0), 8, backend=backend)
    assert found.dropped_rows == 3
    assert found.rows == 597
    assert np.array_equal(found.centroids, clean.centroids)


def test_a_float64_beyond_fp32_counts_as_not_finite():
    x = np.ones((5, 2))
    x[0, 0] = 1e300
    assert kmeans(x, 1, backend="faiss-cpu").dropped_rows == 1


def test_fewer_finite_rows_than_k():
    x = np.ones((4, 3), dtype=np.float32)
    x[0] = np.nan
    with pytest.raises(FitError, match=r"3 finite rows of 4 are fewer than k = 4; harvest more rows or lower k"):
        kmeans(x, 4, backend="faiss-cpu")


def test_empty_clusters_are_counted(backend):
    x = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    found = kmeans(x, 5, backend=backend)
    assert found.empty_clusters == (found.sizes == 0).sum() == 2
    assert found.inertia == pytest.approx(0, abs=1e-3)


def test_max_rows_is_a_recorded_seeded_sample(backend):
    x, _ = blobs(rows=1000)
    found = kmeans(x, 8, backend=backend, max_rows=300)
    assert (found.rows, found.sampled_out_rows) == (300, 700)
    assert found.sizes.sum() == 300
    assert np.array_equal(found.centroids, kmeans(x, 8, backend=backend, max_rows=300).centroids)
    assert kmeans(x, 8, backend=backend, max_rows=1000).sampled_out_rows == 0


def test_no_rows_are_left_out_by_faiss_itself():
    # FAISS would fit 256 rows a centroid; a cluster of its own in the rest moves the mean only if all count.
    x = np.zeros((2000, 4), dtype=np.float32)
    x[1000:] = 1
    assert kmeans(x, 1, backend="faiss-cpu").centroids[0] == pytest.approx([0.5] * 4)


def test_reads_memory_maps_and_half_precision(tmp_path, backend):
    x, _ = blobs(rows=9000)
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = kmeans(mapped, 8, backend=backend)
    assert np.array_equal(found.centroids, kmeans(x.astype(np.float16), 8, backend=backend).centroids)
    assert found.rows == 9000


def test_the_input_stays_as_it_was():
    x, _ = blobs()
    before = x.copy()
    kmeans(x, 4, backend="faiss-cpu")
    assert np.array_equal(x, before)


def test_start_chooses_distinct_rows_and_copes_with_copies():
    x, label = blobs()
    start = greedy_start(x, 8, np.random.default_rng(0))
    hit = [int(np.flatnonzero((x == row).all(1))[0]) for row in start]
    assert sorted(label[hit]) == list(range(8))
    assert greedy_start(np.ones((5, 3), np.float32), 4, np.random.default_rng(0)).shape == (4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k is 0; expected an integer of at least 1"),
        ({"k": 2.0}, r"k is 2.0; expected an integer of at least 1"),
        ({"iterations": 0}, r"iterations is 0"),
        ({"max_rows": 0}, r"max_rows is 0"),
        (
            {"k": 8, "max_rows": 4},
            r"k is 8, above the 4 rows that one k-means fits \(max_rows\); take a",
        ),
        ({"backend": "cuml"}, r"unknown k-means backend 'cuml'; expected one of auto, faiss-gpu"),
    ],
)
def test_wrong_parameters(change, message):
    with pytest.raises(ConfigError, match=message):
        kmeans(**{"x": np.ones((9, 2), np.float32), "k": 2, **change})


def test_wrong_rows():
    with pytest.raises(FitError, match=r"rows have shape \(9,\); expected \(rows, hidden\)"):
        kmeans(np.ones(9), 2)
    with pytest.raises(FitError, match=r"rows are of dtype int64; expected floating point"):
        kmeans(np.ones((9, 2), np.int64), 2)


class FakeFaiss:
    """FAISS as built for GPUs. It says nothing about a real GPU."""

    __version__ = "9.9"

    def __init__(self, gpus, failure=None):
        self.gpus, self.failure = gpus, failure

    def get_num_gpus(self):
        return self.gpus

    def Kmeans(self, width, k, **options):
        assert options["gpu"] == self.gpus
        if self.failure:
            raise self.failure
        import faiss

        return faiss.Kmeans(width, k, **{**options, "gpu": False})


def offer(monkeypatch, **modules):
    def fake(name, extra):
        found = modules.get(name.split(".")[0])
        if found is None:
            raise MissingExtraError(f"{name} is not installed; pip install 'tccd[{extra}]'")
        return found

    monkeypatch.setattr(module, "require", fake)


def test_auto_takes_every_visible_gpu(monkeypatch):
    offer(monkeypatch, faiss=FakeFaiss(2))
    found = kmeans(blobs()[0], 4)
    assert (found.backend, found.backend_version) == ("faiss-gpu", "9.9")


@pytest.mark.parametrize("backend", ["auto", "faiss-gpu"])
def test_a_gpu_failure_is_raised(monkeypatch, backend):
    offer(monkeypatch, faiss=FakeFaiss(1, RuntimeError("CUDA error 2 out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        kmeans(blobs()[0], 4, backend=backend)


def test_faiss_gpu_without_a_gpu_is_an_error(monkeypatch):
    offer(monkeypatch, faiss=FakeFaiss(0))
    with pytest.raises(FitError, match=r"FAISS 9.9 reports no GPU; install 'tccd\[faiss-gpu\]'"):
        kmeans(blobs()[0], 4, backend="faiss-gpu")


def test_auto_falls_to_what_is_installed(monkeypatch):
    import sklearn.cluster
    import threadpoolctl

    sklearn.cluster.__version__ = sklearn.__version__
    offer(monkeypatch, sklearn=sklearn.cluster, threadpoolctl=threadpoolctl)
    assert kmeans(blobs()[0], 4).backend == "sklearn"
    offer(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"'tccd\[faiss\]', 'tccd\[faiss-gpu\]' or 'tccd\[sklearn\]'"):
        kmeans(blobs()[0], 4)
    with pytest.raises(MissingExtraError, match=r"tccd\[faiss-gpu\]"):
        kmeans(blobs()[0], 4, backend="faiss-gpu")


@pytest.mark.parametrize("distinct", [1, 5, 8, 200])
def test_rows_that_differ_are_counted(distinct):
    rng = np.random.default_rng(0)
    some = rng.standard_normal((distinct, 16)).astype(np.float32)
    some[0, 0] = 0.0
    rows = some[np.arange(400) % distinct]
    rows[rows == 0] = np.where(np.arange(np.sum(rows == 0)) % 2, 0.0, -0.0)
    found = kmeans(rows, 8, backend="faiss-cpu")
    assert found.distinct_rows == distinct
    assert (found.empty_clusters > 0) == (distinct < 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k is 0; expected an integer of at least 1"),
        ({"seed": -1}, ConfigError, "seed is -1; expected an integer of at least 0"),
        ({"iterations": True}, ConfigError, "iterations is True"),
        ({"max_rows": 0}, ConfigError, "max_rows is 0; expected a positive integer or None"),
        ({"max_rows": 3}, ConfigError, "k is 4, above the 3 rows"),
        ({"backend": "cuml"}, ConfigError, "unknown k-means backend .cuml."),
        ({"backend": "faiss-gpu"}, FitError, "faiss-gpu was asked for, but FAISS .* reports no GPU"),
    ],
)
def test_what_kmeans_would_refuse_is_told_before_there_are_rows(change, error, message):
    check_kmeans(**{"k": 4})
    with pytest.raises(error, match=message):
        check_kmeans(**{"k": 4, **change})
