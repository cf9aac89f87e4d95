"""A trained VQGAN as two compiled functions on uint8 pictures: to codes and back."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VQGANConfig
from ofa_jax.models import vqgan
from ofa_jax.models.precision import policy
from ofa_jax.parallel.mesh import batch_sharding, replicated
from ofa_jax.parallel.rules import key_path_parts


class Codec:
    """Encodes and decodes batches of one static shape; a shorter last batch is padded and cut off again. Nothing is random."""

    def __init__(self, config: VQGANConfig, params: Any, *, rows: int = 32, precision: str = "f32", mesh: Mesh | None = None):
        """params: as `vqgan.create` gives, arrays of NumPy or JAX. rows: pictures of one call of the program; with `mesh`, split over its
        data axes, which must divide it. Raises ValueError when they do not."""
        self.config, self.rows = config, rows
        graphdef, _ = jax.eval_shape(lambda: vqgan.create(config, jax.random.key(0), precision=precision))
        accum = policy(precision).accum
        placement = {}
        self._whole = None if mesh is None else replicated(mesh)
        if mesh is not None:
            placement = {"in_shardings": (self._whole, batch_sharding(mesh)), "out_shardings": self._whole}
        self._params = jax.device_put(params, self._whole)

        def encode(params: Any, images: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).encode(vqgan.to_pixels(images, accum=accum))

        def decode(params: Any, codes: jax.Array) -> jax.Array:
            return vqgan.to_uint8(nnx.merge(graphdef, params).decode(codes))

        self._encode, self._decode = jax.jit(encode, **placement), jax.jit(decode, **placement)

    def with_params(self, params: Any) -> Codec:
        """Returns the same compiled functions with other parameters of the same structure."""
        other = copy.copy(self)
        other._params = jax.device_put(params, self._whole)
        return other

    def encode(self, images: np.ndarray) -> np.ndarray:
        """images uint8 [n, H, W, 3], sides multiples of the stride -> codes int32 [n, H / stride, W / stride].

        Raises ValueError for another dtype or shape.
        """
        stride = self.config.stride
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"encode: found {images.dtype} {images.shape}, expected uint8 [n, H, W, 3] with sides that are multiples of {stride}"
            )
        return self._in_batches(self._encode, images)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int [n, h, w] -> uint8 [n, h * stride, w * stride, 3]. Raises ValueError for a code that is not in the codebook."""
        if codes.size and (codes.min() < 0 or codes.max() >= self.config.num_codes):
            found = codes.min() if codes.min() < 0 else codes.max()
            raise ValueError(f"decode: found code {found}, expected 0 to {self.config.num_codes - 1}")
        return self._in_batches(self._decode, codes.astype(np.int32))

    def _in_batches(self, program: Any, values: np.ndarray) -> np.ndarray:
        out: list[Any] = []
        for start in range(0, len(values), self.rows):
            batch = values[start : start + self.rows]
            padded = np.concatenate([batch, np.zeros((self.rows - len(batch), *batch.shape[1:]), batch.dtype)])
            out.append(program(self._params, padded)[: len(batch)])  # the next batch starts before this one is read
        if out:
            return np.concatenate([np.asarray(part) for part in out])
        empty = jax.eval_shape(program, self._params, jax.ShapeDtypeStruct((self.rows, *values.shape[1:]), values.dtype))
        return np.zeros((0, *empty.shape[1:]), empty.dtype)


CODEC_FILE = "vqgan.npz"  # in a data folder: the model that its codes are of


def codec_digest(config: VQGANConfig, params: Any) -> str:
    """Returns the SHA-256 of structure and weights, 64 hex digits: equal digests give equal codes."""
    hasher = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for name, array in _named(params).items():
        hasher.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


def save_codec_file(path: Path, config: VQGANConfig, params: Any) -> None:
    """Writes structure and weights to `path` in one move, so that whoever has the codes can draw them."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **{_STRUCTURE: np.array(json.dumps(dataclasses.asdict(config)))}, **_named(params))
    os.replace(partial, path)


def keep_codec_file(data_dir: Path, config: VQGANConfig, params: Any, *, rebuild: bool = False) -> None:
    """Writes `data_dir/vqgan.npz` where it is not there. Raises DataError when another model's is and `rebuild` is off: codes of two models
    in one folder could not be told apart when they are drawn."""
    path = data_dir / CODEC_FILE
    if path.exists() and not rebuild:
        check_codec_file(path, config, params, name=str(path))
        return
    save_codec_file(path, config, params)


def check_codec_file(path: Path, config: VQGANConfig, params: Any, *, name: str) -> None:
    """Raises DataError when a file of `save_codec_file`, which errors call `name`, is of another model."""
    found = load_codec_file(path)[2]
    if found != codec_digest(config, params):
        raise DataError(f"{name}: found another VQGAN (digest {found[:12]}), expected the one given; add --rebuild to replace it")


def load_codec_file(path: Path) -> tuple[VQGANConfig, Any, str]:
    """Returns (structure, parameters as NumPy arrays, digest) of a file of `save_codec_file`. Raises DataError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: found no file of a VQGAN ({error}), expected one that `launch/prepare.py codes` wrote") from error
    if _STRUCTURE not in arrays:
        raise DataError(f"{path}: found arrays {', '.join(list(arrays)[:3])} ..., expected those of a VQGAN")
    fields = json.loads(str(arrays.pop(_STRUCTURE)))
    config = VQGANConfig(
        **{  # type: ignore[arg-type]
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
    )
    abstract = jax.eval_shape(lambda: vqgan.create(config, jax.random.key(0))[1])
    wanted = {"/".join(key_path_parts(p)): leaf.shape for p, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]}
    wrong = [name for name in {**wanted, **arrays} if name not in arrays or wanted.get(name) != arrays[name].shape]
    if wrong:
        raise DataError(f"{path}: found other arrays than its structure has: {', '.join(wrong[:5])}")
    params = jax.tree_util.tree_map_with_path(lambda p, _: arrays["/".join(key_path_parts(p))], abstract)
    return config, params, codec_digest(config, params)


_STRUCTURE = "structure.json"


def _named(params: Any) -> dict[str, np.ndarray]:
    return {"/".join(key_path_parts(path)): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
