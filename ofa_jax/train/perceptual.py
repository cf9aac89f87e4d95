"""How unlike two pictures look, beside their pixels: LPIPS where its weights are given, differences of edges where not.

LPIPS (Zhang et al. 2018, arXiv 1801.03924) compares features of a VGG-16 that was trained on ImageNet, which no package ships. Without
them the loss compares horizontal and vertical differences of neighbouring pixels at three scales: a blurred edge costs there, while the
mean absolute error of a thin one is small. It knows nothing of what pictures show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.models.convolution import convolve

_EDGE_SCALES = 3

# torchvision's vgg16().features: channels of its convolutions by group; a 2x2 maximum lies between groups. LPIPS reads each group's end.
_VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers of the convolutions in `features`
# LPIPS's own input scaling, of pixels in [-1, 1] (lpips.ScalingLayer).
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10


class PerceptualLoss(Protocol):
    """A distance of pictures. Its weights, if any, are an argument, so that no program holds them as constants."""

    def weights(self) -> Any:
        """Returns its arrays, a pytree; None without any."""

    def __call__(self, weights: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        """a, b: pixels [B, H, W, 3] in [-1, 1] -> float [B], 0 for equal pictures."""


class Edges:
    """Mean absolute difference of neighbouring pixels' differences, summed over scales 1, 1/2 and 1/4."""

    def weights(self) -> None:
        return None

    def __call__(self, weights: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        del weights
        error, total = a - b, jnp.zeros(a.shape[0], a.dtype)
        for scale in range(_EDGE_SCALES):
            if scale:
                rows, height, width, channels = error.shape
                error = error.reshape(rows, height // 2, 2, width // 2, 2, channels).mean((2, 4))
            down, right = jnp.diff(error, axis=1), jnp.diff(error, axis=2)
            total += jnp.mean(jnp.abs(down), (1, 2, 3)) + jnp.mean(jnp.abs(right), (1, 2, 3))
        return total


class Lpips:
    """LPIPS with VGG-16: squared differences of features of unit length, weighted by channel, averaged over pixels, summed over groups."""

    def __init__(self, state: dict[str, np.ndarray], *, where: str):
        """state: torchvision's `features.<n>.{weight,bias}` and LPIPS's `lin<i>.model.1.weight` (1, C, 1, 1), beside whatever else.

        `where` begins an error's sentence. Raises `DataError` for a tensor that is missing or of another shape.
        """
        self._weights: dict[str, Any] = {"convolutions": [], "channels": []}

        def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
            found = next((state[key] for key in (name, f"net.{name}", f"model.{name}") if key in state), None)
            if found is None or found.shape != shape:
                raise DataError(f"{where}: {name}: found {'nothing' if found is None else found.shape}, expected shape {shape}")
            return found.astype(np.float32)

        layers, channels = iter(_VGG_LAYERS), 3
        for index, group in enumerate(_VGG_GROUPS):
            for out in group:
                layer = next(layers)
                kernel = take(f"features.{layer}.weight", (out, channels, 3, 3)).transpose(2, 3, 1, 0)
                self._weights["convolutions"].append((kernel, take(f"features.{layer}.bias", (out,))))
                channels = out
            self._weights["channels"].append(take(f"lin{index}.model.1.weight", (1, channels, 1, 1)).reshape(-1))

    def weights(self) -> Any:
        return self._weights

    def __call__(self, weights: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        shift, scale = (np.asarray(v, a.dtype) for v in (_SHIFT, _SCALE))
        x = (jnp.concatenate([a, b]) - shift) / scale
        convolutions, total = iter(weights["convolutions"]), jnp.zeros(a.shape[0], a.dtype)
        for index, group in enumerate(_VGG_GROUPS):
            if index:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            for _ in group:
                kernel, bias = next(convolutions)
                x = jax.nn.relu(convolve(x, kernel.astype(x.dtype), stride=1, padding=1, method="xla") + bias.astype(x.dtype))
            unit = x / (jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True)) + _NORM_EPS)
            difference = jnp.square(unit[: a.shape[0]] - unit[a.shape[0] :])
            total += jnp.mean(difference @ weights["channels"][index].astype(x.dtype), (1, 2))
        return total


def load_perceptual(path: str) -> PerceptualLoss:
    """Returns LPIPS with the weights of the `.npz` file at `path` (PyTorch's names and order of dimensions), or `Edges` for an empty path.

    Raises `DataError` when the file is missing or lacks a tensor.
    """
    if not path:
        return Edges()
    if not Path(path).is_file():
        raise DataError(f"loss.perceptual: found no file {path}, expected VGG-16's and LPIPS's tensors as .npz")
    with np.load(path, allow_pickle=False) as file:
        return Lpips(dict(file), where=path)
