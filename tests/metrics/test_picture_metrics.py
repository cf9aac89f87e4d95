"""Scores of drawn pictures from arrays: FID beside SciPy's matrix root, the Inception score beside its entropy, CLIP's by hand."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from ofa_jax.config.errors import DataError
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.clip_score import best_of, clip_reward, clip_score, cosines
from ofa_jax.metrics.fid import FeatureStatistics, feature_statistics, fid, frechet_distance, read_statistics
from ofa_jax.metrics.inception_score import inception_score, inception_score_of_splits


def _features(seed, n, width=48):
    """Correlated features that are not negative, some of them always 0, as after a rectifier."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(n, width)) @ draw.normal(size=(width, width)) / np.sqrt(width)
    return np.maximum(mixed + draw.normal(size=width), 0).astype(np.float32)


def _by_scipy(a, b):
    """TTUR's formula."""
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a.astype(np.float64), b.astype(np.float64)))
    root = scipy.linalg.sqrtm(c1 @ c2)
    return np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * np.real(root))


@pytest.mark.parametrize("seed", range(3))
def test_fid_equals_scipys_matrix_root(seed):
    draw = np.random.default_rng(seed)
    made, real = (_features(seed + k, 400) + draw.random((400, 48)) for k in (0, 10))  # SciPy's root wants full rank
    assert fid(made, real) == pytest.approx(_by_scipy(made, real), rel=1e-12)
    assert fid(made, feature_statistics(real)) == fid(made, real)
    assert fid(real, made) == pytest.approx(fid(made, real), rel=1e-12)


def test_fid_of_fewer_pictures_than_features():
    """Covariances are singular; the trace of the root of their product is the nuclear norm of one set of features times the other."""
    made, real = _features(0, 20).astype(np.float64), _features(1, 30).astype(np.float64)
    (a, b), sizes = (x - x.mean(0) for x in (made, real)), np.sqrt([19, 29])
    common = np.linalg.svd(a @ b.T / sizes.prod(), compute_uv=False).sum()
    expected = np.square(made.mean(0) - real.mean(0)).sum() + np.square(a).sum() / 19 + np.square(b).sum() / 29 - 2 * common
    assert fid(made, real) == pytest.approx(expected, rel=1e-10)


def test_fid_in_closed_form():
    """Of diagonal covariances it is the distance of means and of standard deviations."""
    draw = np.random.default_rng(0)
    (m1, m2), (s1, s2) = draw.normal(size=(2, 7)), draw.random((2, 7))
    found = frechet_distance(FeatureStatistics(m1, np.diag(s1**2)), FeatureStatistics(m2, np.diag(s2**2)))
    assert found == pytest.approx(np.square(m1 - m2).sum() + np.square(s1 - s2).sum(), rel=1e-12)
    features = _features(0, 100)
    assert 0 <= fid(features, features) < 1e-10
    assert fid(features, features + np.float32(0.5)) == pytest.approx(48 / 4, rel=1e-5)


def test_statistics_of_real_pictures_come_from_a_file(tmp_path):
    made, real = _features(0, 100), _features(1, 100)
    stored = feature_statistics(real)
    np.savez(tmp_path / "gt_stat.npz", mu=stored.mean, sigma=stored.covariance)
    assert fid(made, read_statistics(tmp_path / "gt_stat.npz")) == fid(made, real)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "stat.npz cannot be read"),
        (b"not a file of arrays", "does not hold statistics for FID"),
        (b"PK\x03\x04 cut off", "does not hold statistics for FID"),
        ({"mu": np.zeros(3)}, "does not hold statistics for FID .*sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 3))}, r"found mu \(3,\) and sigma \(2, 3\), expected \[width\] and \[width, width\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "found a number that is not finite"),
        ({"mu": np.array(["a"]), "sigma": np.zeros((1, 1))}, "does not hold statistics for FID"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, content, fault):
    path = tmp_path / "stat.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(DataError, match=fault):
        read_statistics(path)


def test_features_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"fid: found features \(1, 4\), expected \[n, width\] of two pictures or more"):
        feature_statistics(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="fid: picture 2: found a feature that is not finite"):
        feature_statistics(np.array([[0.0], [1], [np.inf]]))
    with pytest.raises(ValueError, match="fid: found features of width 3 and 4"):
        fid(np.eye(3), np.eye(4))


def _probabilities(seed, n=120, classes=30):
    scores = np.random.default_rng(seed).normal(size=(n, classes)) * 3
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def _by_entropy(rows):
    rows = rows.astype(np.float64) / rows.astype(np.float64).sum(1, keepdims=True)
    return np.exp(np.mean([scipy.stats.entropy(row, rows.mean(0)) for row in rows]))


@pytest.mark.parametrize("seed", range(3))
def test_inception_score_equals_scipys_entropy_also_on_a_resample(seed):
    rows = _probabilities(seed)
    found = inception_score(rows)
    assert found.value == pytest.approx(_by_entropy(rows), rel=1e-12)
    assert np.exp(found.scores.mean()) == pytest.approx(found.value, rel=1e-12)
    counts = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=4)
    for row, value in zip(counts, found.resample(counts.astype(float)), strict=True):
        assert value == pytest.approx(_by_entropy(np.repeat(rows, row, axis=0)), rel=1e-12)
    parts = [_by_entropy(rows[k * 17 : (k + 1) * 17]) for k in range(7)]  # 120 // 7, one picture left out
    assert inception_score_of_splits(rows, splits=7) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)
    assert inception_score_of_splits(rows, splits=1) == pytest.approx((found.value, 0), rel=1e-12)
    low, high = interval_95(found, num_samples=100)
    assert 1 < low < high


def test_inception_score_at_its_ends():
    assert inception_score(np.full((5, 4), 0.25)).value == pytest.approx(1, abs=1e-12)
    assert inception_score(np.eye(4)).value == pytest.approx(4, abs=1e-12)
    assert inception_score(np.eye(4)[[2, 2]]).value == 1  # classes that no picture has
    with pytest.raises(ValueError, match="inception_score: picture 1: found a row from -0.5 on that sums to 1, expected probabilities"):
        inception_score(np.array([[0.5, 0.5], [-0.5, 1.5]]))
    with pytest.raises(ValueError, match="picture 0: found a row from nan on"):
        inception_score(np.array([[np.nan, 0.5]]))
    with pytest.raises(ValueError, match=r"found probabilities \(3,\), expected \[n, classes\]"):
        inception_score(np.ones(3))
    with pytest.raises(ValueError, match="found 5 splits of 4 pictures"):
        inception_score_of_splits(np.eye(4), splits=5)


def test_clip_score_by_hand():
    texts = np.array([[1.0, 0], [0, 2]])
    pictures = np.array([[3.0, 4], [1, -1]])  # cosines 0.6 and -1 / sqrt 2
    assert clip_score(pictures, texts).scores == pytest.approx([60, -100 / np.sqrt(2)])
    assert clip_score(pictures, texts).value == pytest.approx(30 - 50 / np.sqrt(2))
    assert clip_reward(pictures, texts) == pytest.approx([1.5, 0])


def test_best_of_several():
    draw = np.random.default_rng(0)
    pictures, texts = draw.normal(size=(6, 24, 8)), draw.normal(size=(6, 8))
    expected = np.array([[np.dot(p, t) / np.linalg.norm(p) / np.linalg.norm(t) for p in ps] for ps, t in zip(pictures, texts, strict=True)])
    np.testing.assert_allclose(cosines(pictures, texts), expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(best_of(pictures, texts), expected.argmax(1))
    assert clip_score(pictures, texts).value == pytest.approx(100 * expected.max(1).mean())
    np.testing.assert_allclose(clip_reward(pictures, texts), 2.5 * np.maximum(expected, 0), rtol=0, atol=1e-14)
    equal = np.broadcast_to(texts[:, None], (6, 3, 8))
    assert best_of(equal, texts).tolist() == [0] * 6


def test_embeddings_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"clip_score: found pictures \(2, 3\) and texts \(3, 3\), expected \[n, D\] or \[n, k, D\]"):
        clip_score(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"clip_score: picture \(1, 0\): found no direction"):
        cosines(np.array([[[1.0]], [[0.0]]]), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"clip_score: text \(0,\): found no direction"):
        clip_score(np.ones((1, 2)), np.array([[np.nan, 1]]))
    with pytest.raises(ValueError, match=r"found pictures \(2, 3\), expected \[n, k, D\]"):
        best_of(np.ones((2, 3)), np.ones((2, 3)))
