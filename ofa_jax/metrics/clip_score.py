"""How well pictures fit their texts by a network that embeds both, such as CLIP (Hessel et al., CLIPScore, arXiv 2104.08718, section 3).

Which network embeds is part of the number: OFA's is CLIP ViT-B/16. Embeddings of any length may be given; only their angles count.
"""

from __future__ import annotations

import numpy as np

from ofa_jax.metrics.measured import Measured, mean

REWARD_SCALE = 2.5  # the paper's w; OFA's second stage of text-to-image rewards by it


def _directions(name: str, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings float [..., D] as float64 of length 1. Raises ValueError where one has none."""
    vectors = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    broken = np.argwhere(~((lengths[..., 0] > 0) & np.isfinite(lengths[..., 0])))
    if len(broken):
        raise ValueError(f"clip_score: {name} {tuple(int(i) for i in broken[0])}: found no direction (zeros, or not finite), expected one")
    return vectors / lengths


def cosines(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns cosines float64 [n], or [n, k], of embeddings of pictures [n, D], or [n, k, D], with those of their texts [n, D].

    Raises ValueError where shapes do not fit, there are none, or an embedding has no direction.
    """
    pictures, texts = np.asarray(pictures), np.asarray(texts)
    if texts.ndim != 2 or pictures.ndim not in (2, 3) or (len(pictures), pictures.shape[-1]) != texts.shape or 0 in pictures.shape:
        raise ValueError(f"clip_score: found pictures {pictures.shape} and texts {texts.shape}, expected [n, D] or [n, k, D], and [n, D]")
    return np.einsum("n...d,nd->n...", _directions("picture", pictures), _directions("text", texts))


def clip_score(pictures: np.ndarray, texts: np.ndarray) -> Measured:
    """Mean of 100 x cosine, in [-100, 100], of embeddings of pictures [n, D] and their texts [n, D]: CLIPSIM as papers print it.

    With pictures [n, k, D] the best of each text's k counts: OFA draws 24 a text. Raises ValueError as `cosines`.
    """
    found = 100.0 * cosines(pictures, texts)
    return mean(found if found.ndim == 1 else found.max(1))


def clip_reward(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns 2.5 x max(cosine, 0), float64 [n] or [n, k], arguments and errors as those of `cosines`."""
    return REWARD_SCALE * np.maximum(cosines(pictures, texts), 0.0)


def best_of(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the place, int64 [n], of the picture that fits each text best: embeddings [n, k, D] and [n, D]; the first of equal ones.

    Raises ValueError as `cosines`.
    """
    found = cosines(pictures, texts)
    if found.ndim != 2:
        raise ValueError(f"clip_score: found pictures {np.shape(pictures)}, expected [n, k, D], k of each text")
    return found.argmax(1)
