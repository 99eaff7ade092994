import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tccd.centroids import replacement
from tccd.centroids.replacement import Centroids
from tccd.errors import BankMismatchError, ConfigError
from tests.tccd.centroids.fakes import brute_force


def draw(seed, *shape, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    n=st.integers(0, 40),
    k=st.integers(1, 20),
    width=st.integers(1, 70),
    alpha=st.floats(0, 1, width=32),
)
def test_agrees_with_brute_force(seed, n, k, width, alpha):
    x, c = draw(seed, n, width), draw(seed + 1, k, width)
    centroids = Centroids(c)
    nearest, blend = brute_force(x, c, alpha)
    ours = centroids.nearest(x)
    # Where fp32 can't tell two centroids apart, either is nearest: compare distances, not indices.
    gap = (x.double() - c.double()[ours]).norm(dim=-1) - (x.double() - c.double()[nearest]).norm(dim=-1)
    assert gap.abs().max() < 1e-5 if n else True
    same = ours == nearest
    torch.testing.assert_close(centroids.replace(x, alpha).double()[same], blend[same], atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**30), k=st.integers(1, 12), n=st.integers(1, 6))
def test_exact_copies_of_centroids_give_the_lowest_index(seed, k, n):
    distinct = draw(seed, k, 33)
    copies = torch.randint(k, (3 * k,), generator=torch.Generator().manual_seed(seed))
    c = distinct[copies]
    x = (distinct[copies] + 1e-3 * draw(seed + 2, 3 * k, 33))[:n]
    ours = Centroids(c).nearest(x)
    for i in ours.tolist():
        assert not any(torch.equal(c[j], c[i]) for j in range(i))


def test_a_row_as_near_to_several_takes_the_lowest_index():
    c = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert Centroids(c).nearest(torch.zeros(1, 2)).tolist() == [1]
    assert Centroids(c[[0, 4, 3, 2, 1]]).nearest(torch.zeros(1, 2)).tolist() == [1]


def test_negative_zero_is_zero():
    c = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    assert Centroids(c).nearest(torch.tensor([[0.5, 1.0]])).tolist() == [0]


def test_components_shared_by_all_rows_cost_no_precision():
    # Uncentred, |x|^2 is about 3e8 here, and fp32 rounds it by 16: most rows would get another centroid.
    x, c = draw(0, 200, 256), draw(1, 32, 256)
    x[:, :3] += 1e4
    c[:, :3] += 1e4
    nearest, blend = brute_force(x, c, 0.4)
    assert torch.equal(Centroids(c).nearest(x), nearest)
    torch.testing.assert_close(Centroids(c).replace(x, 0.4).double(), blend, atol=1e-5, rtol=1e-6)


def test_alpha_one_is_the_identity_and_zero_is_the_centroid():
    x, c = draw(0, 7, 16), draw(1, 4, 16)
    centroids = Centroids(c)
    assert torch.equal(centroids.replace(x, 1.0), x)
    assert torch.equal(centroids.replace(x, torch.ones(7)), x)
    assert torch.equal(centroids.replace(x, 0.0), c[centroids.nearest(x)])


def test_alpha_may_differ_by_row_and_any_leading_shape_works():
    x, c = draw(0, 2, 5, 16), draw(1, 4, 16)
    alpha = torch.rand(2, 5, generator=torch.Generator().manual_seed(2))
    centroids = Centroids(c)
    together = centroids.replace(x, alpha)
    assert together.shape == x.shape
    assert centroids.nearest(x).shape == (2, 5)
    for i in range(2):
        for j in range(5):
            alone = centroids.replace(x[i, j], float(alpha[i, j]))
            torch.testing.assert_close(together[i, j], alone, atol=1e-6, rtol=0)
    per_row = centroids.replace(x, torch.tensor([[0.0], [1.0]]))
    assert torch.equal(per_row[1], x[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out_with_fp32_distances(dtype):
    x, c = draw(0, 500, 512).to(dtype), draw(1, 64, 512)
    centroids = Centroids(c)
    nearest, blend = brute_force(x, c, 0.4)
    assert torch.equal(centroids.nearest(x), nearest)
    out = centroids.replace(x, 0.4)
    assert out.dtype == dtype
    assert torch.equal(out, blend.to(torch.float32).to(dtype)) or (
        (out.double() - blend).abs().max() <= blend.abs().max() * torch.finfo(dtype).eps
    )
    assert torch.equal(centroids.replace(x, 1), x)


def test_autocast_does_not_reach_the_distances():
    x, c = draw(0, 3000, 64), draw(1, 128, 64)
    centroids = Centroids(c)
    plain = centroids.nearest(x), centroids.replace(x, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(centroids.nearest(x), plain[0])
        assert torch.equal(centroids.replace(x, 0.4), plain[1])


@pytest.mark.parametrize("setting", ["high", "medium"])
@pytest.mark.parametrize("rows", [1, 4, 300])
def test_low_matmul_precision_does_not_reach_the_distances(monkeypatch, setting, rows):
    """On a CPU with bf16 products "medium" rounds both factors of every fp32 product."""
    generator = torch.Generator().manual_seed(3)
    centroids = Centroids(torch.randn(64, 512, generator=generator))
    x = torch.randn(rows, 512, generator=generator)
    expected, found = centroids._scores(x), []
    scores = centroids._scores
    monkeypatch.setattr(centroids, "_scores", lambda x: found.append(scores(x)) or found[-1])
    torch.set_float32_matmul_precision(setting)
    try:
        rounded = torch.backends.mkldnn.matmul.fp32_precision
        assert rounded == {"high": "tf32", "medium": "bf16"}[setting]
        centroids.nearest(x)
        centroids.replace(x, 0.4)
        assert torch.backends.mkldnn.matmul.fp32_precision == rounded
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(one, expected) for one in found)
    assert len(found) == 2


def test_moved_centroids_are_kept():
    centroids = Centroids(torch.randn(3, 4))
    assert centroids.to("meta") is centroids.to("meta") is not centroids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(monkeypatch, dtype):
    x, c = draw(0, 101, 16).to(dtype), draw(1, 8, 16)
    alpha = torch.rand(101)
    whole = Centroids(c)
    monkeypatch.setattr(replacement, "_CHUNK_ELEMENTS", 16 * 10)
    parts = Centroids(c)
    assert torch.equal(parts.nearest(x), whole.nearest(x))
    torch.testing.assert_close(parts.replace(x, 0.3), whole.replace(x, 0.3), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.replace(x, alpha), whole.replace(x, alpha), atol=1e-6, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_few_rows_and_many_choose_alike(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        x, c = draw(0, 50, 64), draw(1, 32, 64)
        c[7] = c[3]
        centroids = Centroids(c)
        many, blend = centroids.nearest(x), centroids.replace(x, 0.3)
        for n in (1, 2, 3, 4, 5):
            assert torch.equal(centroids.nearest(x[:n]), many[:n])
            torch.testing.assert_close(centroids.replace(x[:n], 0.3), blend[:n])
        assert centroids.nearest(c[7:8]).tolist() == [3]
    finally:
        torch.set_num_threads(before)


def test_the_input_stays_as_it_was_and_views_work():
    base = draw(0, 6, 32)
    x, c = base[::2, :16], draw(1, 4, 16)
    before = base.clone()
    out = Centroids(c).replace(x, 0.2)
    assert torch.equal(base, before)
    torch.testing.assert_close(out, Centroids(c).replace(x.contiguous(), 0.2))


def test_rows_that_need_a_gradient_work_and_get_none():
    x = draw(0, 3, 16).requires_grad_()
    out = Centroids(draw(1, 4, 16)).replace(x, 0.5)
    assert not out.requires_grad


def test_to_the_same_device_copies_nothing():
    c = draw(0, 4, 16)
    centroids = Centroids(c)
    assert centroids.vectors.data_ptr() == c.data_ptr()
    assert centroids.to("cpu") is centroids
    assert centroids.to("meta").device.type == "meta"
    assert (centroids.k, centroids.hidden_size) == (4, 16)
    assert repr(centroids) == "Centroids(k=4, hidden_size=16, device='cpu')"


def test_wrong_rows_are_refused():
    centroids = Centroids(draw(0, 4, 16))
    with pytest.raises(BankMismatchError, match=r"rows of shape \(2, 8\) meet centroids of width 16"):
        centroids.replace(torch.zeros(2, 8), 0.5)
    with pytest.raises(BankMismatchError, match="width 16"):
        centroids.nearest(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"torch.int64 of shape \(2, 16\); expected a floating-point"):
        centroids.nearest(torch.zeros(2, 16, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"x is on meta, the centroids on cpu; move them"):
        centroids.replace(torch.zeros(2, 16, device="meta"), 0.5)


def test_wrong_centroids_are_refused():
    with pytest.raises(ConfigError, match=r"list; expected a \(K, hidden\)"):
        Centroids([[1.0]])
    with pytest.raises(ConfigError, match=r"torch.int64 of shape \(2, 2\)"):
        Centroids(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least one row"):
        Centroids(torch.ones(0, 2))
    with pytest.raises(ConfigError, match="not finite"):
        Centroids(torch.tensor([[float("nan")]]))
