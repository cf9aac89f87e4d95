"""Fréchet distance between the features of two sets of pictures: FID (Heusel et al., arXiv 1706.08500).

Which network gives the features, and how pictures are resized for it, is part of the number. OFA's is the pool3 layer, 2,048 wide, of the
Inception v3 of the authors' TTUR code, at 299 px by Pillow's bilinear filter, against the statistics of COCO's real pictures.
"""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from ofa_jax.config.errors import DataError


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """What FID knows of a set of pictures: float64 [D] and [D, D], mean and covariance (with n - 1) of their features."""

    mean: np.ndarray
    covariance: np.ndarray


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Returns the statistics of features float [n, D], in float64. Raises ValueError where n < 2 or a feature is not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise ValueError(f"fid: found features {features.shape}, expected [n, width] of two pictures or more")
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise ValueError(f"fid: picture {broken[0]}: found a feature that is not finite, expected numbers")
    return FeatureStatistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def read_statistics(path: Path) -> FeatureStatistics:
    """Reads statistics from an .npz file with `mu` [D] and `sigma` [D, D], as TTUR's code and OFA's `gt_stat.npz` have them.

    Raises DataError where the file is missing or holds anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}), expected statistics for FID") from error
    except (KeyError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} does not hold statistics for FID ({error}), expected an .npz file of mu and sigma") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{path}: found mu {mean.shape} and sigma {covariance.shape}, expected [width] and [width, width]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: found a number that is not finite, expected statistics for FID")
    return FeatureStatistics(mean, covariance)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance. Eigenvalues that are rounding errors count as 0: their roots would be a million times
    greater."""
    values, vectors = np.linalg.eigh(covariance)
    smallest = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return (vectors * np.sqrt(np.where(values > smallest, values, 0.0))) @ vectors.T


def frechet_distance(made: FeatureStatistics, real: FeatureStatistics) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0, for normal distributions with these statistics.

    The trace of the root of C1 C2 is the sum of the singular values of C1^(1/2) C2^(1/2), whose squares are the eigenvalues of C1 C2: no
    complex numbers arise and nothing is added to the diagonal where covariances are singular (fewer pictures than features), unlike in
    TTUR's code. Raises ValueError where the widths differ.
    """
    if made.mean.shape != real.mean.shape:
        raise ValueError(f"fid: found features of width {len(made.mean)} and {len(real.mean)}, expected the same width")
    common = np.linalg.svd(_root(made.covariance) @ _root(real.covariance), compute_uv=False).sum()
    apart = np.square(made.mean - real.mean).sum()
    return float(max(apart + np.trace(made.covariance) + np.trace(real.covariance) - 2 * common, 0.0))


def fid(features: np.ndarray, real: np.ndarray | FeatureStatistics) -> float:
    """Returns the distance of features float [n, D] from real pictures' features float [m, D], or from their statistics.

    It is no mean over pictures and falls as n grows, so it has no score an example and no interval here: give n beside it.
    """
    return frechet_distance(feature_statistics(features), real if isinstance(real, FeatureStatistics) else feature_statistics(real))
