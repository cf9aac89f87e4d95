"""VQGANs in and out of files: taming-transformers' checkpoint -> a run's folder of ours and back, comparison with stored outputs.

An imported run has one checkpoint, of step 0; `launch/prepare.py codes --vqgan` and `init.checkpoint` take it like a trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, ConvertError
from ofa_jax.config.render import to_json
from ofa_jax.config.schema import VQGANConfig, VQGANLossConfig, VQGANRunConfig
from ofa_jax.convert import taming
from ofa_jax.convert.state_files import read_state, write_npz
from ofa_jax.convert.torch_file import write_torch
from ofa_jax.convert.verify import Comparison
from ofa_jax.convert.whole_file import new_place
from ofa_jax.models import vqgan
from ofa_jax.parallel.mesh import on_first_device

OUTPUTS = ("h", "logits", "codes", "rec")


def import_vqgan(source: Path, out: Path, *, progress: Callable[[str], None]) -> VQGANRunConfig:
    """Imports the weights in `source` (a Lightning file of taming-transformers, safetensors or `.npz`) into the run folder `out`.

    The structure is read from names and shapes. Returns the config written. Raises ConvertError, with nothing written, when anything does
    not fit or `out` is there.
    """
    file = read_state(source)
    model = taming.config_of(file.tensors, where=str(file.path))
    params = taming.from_state(file.tensors, model, where=str(file.path))
    left = [name for name in file.tensors if name.startswith(taming.IGNORED)]
    config = VQGANRunConfig(name=out.name, model=model, workdir=str(out), loss=VQGANLossConfig(discriminator_weight=0.0))
    with new_place(out, folder=True) as new:
        (new / "config.json").write_text(to_json(config))
        zero = jnp.zeros((), jnp.int32)
        manager = CheckpointManager(new)
        try:
            state = {"params": {"vqgan": params}, "step": zero, "data_step": zero}
            manager.save(0, jax.tree.map(jnp.asarray, state), config=config, wait=True)
        finally:
            manager.close()
    progress(f"{file.path}: {file.format}, {len(file.tensors)} tensors, {describe_model(model)}")
    if left:
        progress(f"left out, as no part of the model: {len(left)} tensors below {taming.IGNORED}")
    progress(f"{out}: checkpoint of step 0")
    return config


def describe_model(model: VQGANConfig) -> str:
    """Returns one phrase: kind, stride, codes and the number of parameters."""
    count = sum(int(np.prod(shape)) for shape in taming.shapes(model).values())
    return f"VQGAN f={model.stride}, {model.quantizer} quantiser of {model.num_codes:,} codes, {count:,} parameters"


def restore_vqgan(checkpoint: Path) -> tuple[VQGANConfig, Any, str]:
    """Returns (structure, parameters as NumPy arrays, a phrase that names the step) of a VQGAN's run, the average of the weights where it
    keeps one. Raises CheckpointError when it is another model's run or has no complete checkpoint."""
    folder, step = find_run(checkpoint)
    manager = CheckpointManager(folder, read_only=True)
    config = manager.run_config(step)
    if not isinstance(config, VQGANRunConfig):
        raise CheckpointError(f"{folder}: found the run {config.name} of an OFA model, expected one of a VQGAN")
    params = jax.eval_shape(lambda: vqgan.create(config.model, jax.random.key(0))[1])
    if config.precision == "f64":
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), params)
    found = manager.restore_params({"vqgan": on_first_device(params)}, step=step, only_wanted=True)
    averaged = " (averaged weights)" if found.averaged else ""
    return config.model, jax.tree.map(np.asarray, found.params["vqgan"]), f"step {found.step} of {manager.directory}{averaged}"


def is_vqgan_run(checkpoint: Path) -> bool:
    """Returns whether `checkpoint` is a run of ours that trains or holds a VQGAN."""
    folder, step = find_run(checkpoint)
    manager = CheckpointManager(folder, read_only=True)
    return bool(manager.steps()) and isinstance(manager.run_config(step), VQGANRunConfig)


def export_vqgan(checkpoint: Path, out: Path, *, bare: bool = False, progress: Callable[[str], None]) -> None:
    """Writes a VQGAN's checkpoint of ours for other programs: a file with `state_dict` as taming-transformers reads it, or the `bare` state
    as `.npz`. Raises ConvertError when `out` is there already."""
    model, params, said = restore_vqgan(checkpoint)
    state = taming.to_state(params, model)
    with new_place(out, folder=False) as new:
        if bare:
            write_npz(new, state)
        else:
            write_torch(new, {"state_dict": state})
    progress(f"{out}: {len(state)} tensors, {describe_model(model)}, from {said}")


def run(params: Any, images: np.ndarray, model: VQGANConfig) -> dict[str, np.ndarray]:
    """Returns every output of `OUTPUTS`, in PyTorch's order of dimensions, for pictures float [B, 3, H, W] in [-1, 1]: `h` before the
    quantiser, `logits` of the codes, the best `codes` [B, H / stride * W / stride], `rec` decoded from them, not cut to [-1, 1]."""
    graphdef, _ = jax.eval_shape(lambda: vqgan.create(model, jax.random.key(0)))

    @jax.jit
    def outputs(params: Any, pixels: jax.Array) -> tuple[jax.Array, ...]:
        net = nnx.merge(graphdef, params)
        h = net.latents(pixels)
        scores = net.code_scores(h)
        codes = jnp.argmax(scores, -1)
        return h, scores, codes, net.decode(codes)

    h, scores, codes, made = (np.asarray(x) for x in outputs(params, images.transpose(0, 2, 3, 1)))
    h, scores, made = (x.transpose(0, 3, 1, 2) for x in (h, scores, made))
    return {"h": h, "logits": scores, "codes": codes.reshape(len(codes), -1), "rec": made}


def verify(
    tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], *, where: tuple[str, str, str]
) -> list[Comparison]:
    """Returns the comparison of every array of `expected` (some of `OUTPUTS`) with what the weights give on the one array of `inputs`.

    The error of an array is max|a - b| / std(b); of codes it is infinite where one differs. where: the three files, for errors. Raises
    ConvertError for weights, inputs or names that do not fit.
    """
    model = taming.config_of(tensors, where=where[0])
    params = taming.from_state(tensors, model, where=where[0])
    images = [array for array in inputs.values() if array.ndim == 4]
    if len(inputs) != 1 or not images or images[0].shape[1] != 3 or images[0].dtype.kind != "f":
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in inputs.items()) or "nothing"
        raise ConvertError(f"{where[1]}: found {found}, expected one array of pictures, float [B, 3, H, W] in [-1, 1]")
    if images[0].shape[2] % model.stride or images[0].shape[3] % model.stride:
        raise ConvertError(f"{where[1]}: found pictures {images[0].shape}, expected sides that are multiples of {model.stride}")
    found_outputs = run(params, images[0].astype(np.float32), model)
    for name in expected:
        if name not in found_outputs:
            raise ConvertError(f"{where[2]}: found the array {name}, expected some of {', '.join(OUTPUTS)}")
    return [_compare(name, found_outputs[name], np.asarray(expected[name])) for name in sorted(expected, key=OUTPUTS.index)]


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    if name == "codes" and theirs.size == ours.size:
        theirs = theirs.reshape(ours.shape)
    if ours.shape != theirs.shape:
        return Comparison(name, theirs.shape, np.inf, f"found shape {ours.shape}, expected {theirs.shape}")
    if name == "codes":
        wrong = int((ours != theirs).sum())
        return Comparison(name, theirs.shape, np.inf if wrong else 0.0, f"{wrong} codes differ" if wrong else "")
    if not np.isfinite(theirs).all():
        return Comparison(name, theirs.shape, np.inf, "the expected values are not all finite")
    error = float(np.abs(ours - theirs.astype(np.float64)).max(initial=0.0)) / (float(theirs.std()) or 1.0)
    return Comparison(name, theirs.shape, error if np.isfinite(error) else np.inf)
