"""Runs an exported HF-style folder in the OFA of the package modelscope (PyTorch). By hand, in an environment of its own:

python -m venv /tmp/peer && /tmp/peer/bin/pip install torch==2.13.0 'numpy<2' transformers==4.48.3 modelscope==1.40.2 \\
    addict simplejson sortedcontainers pillow safetensors
python launch/convert.py export RUN --out=exported
/tmp/peer/bin/python tests/parity/modelscope_ofa.py exported inputs.npz outputs.npz
python launch/convert.py verify --state=exported --inputs=inputs.npz --expected=outputs.npz

`inputs.npz` is as `ofa_jax/convert/verify.py` describes; where it is missing, one is drawn and written. Every tensor of the folder must
find its place in the model and the other way round.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np


def load_package():
    """Returns the package's OFA modules (configuration, model), entered by their folders: the package itself imports what nobody needs."""
    import torch

    root = Path(importlib.util.find_spec("modelscope").submodule_search_locations[0])
    for name in ("modelscope.models", "modelscope.models.multi_modal", "modelscope.models.multi_modal.ofa"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    fairseq = types.ModuleType("fairseq.modules")
    fairseq.LayerNorm = torch.nn.LayerNorm
    sys.modules["fairseq"], sys.modules["fairseq.modules"] = types.ModuleType("fairseq"), fairseq
    name = "modelscope.models.multi_modal.ofa"
    return importlib.import_module(f"{name}.configuration_ofa"), importlib.import_module(f"{name}.modeling_ofa")


def draw_inputs(path: Path, vocab_size: int) -> None:
    """Writes inputs with padding in every place: two rows with pictures, one of text alone."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, vocab_size, (3, 11)), rng.integers(4, vocab_size, (3, 9))
    source[:, 0] = target[:, 0] = 0
    source[1, 7:], target[2, 6:] = 1, 1
    images = rng.normal(size=(3, 3, 128, 96)).astype(np.float32)
    masks = {"patch_masks": np.array([True, True, False]), "code_masks": np.array([False, True, False])}
    np.savez(path, src_tokens=source, prev_output_tokens=target, patch_images=images, **masks)


def main(folder: Path, inputs: Path, outputs: Path) -> int:
    """Writes the logits of the folder's model on the inputs; exits with 1 when a tensor has no place."""
    import torch
    from safetensors.torch import load_file

    configuration, modeling = load_package()
    settings = json.loads((folder / "config.json").read_text())
    model = modeling.OFAModel(configuration.OFAConfig(**settings)).eval()
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing or unexpected:
        print(f"missing {missing}, unexpected {unexpected}")
        return 1
    if not inputs.exists():
        draw_inputs(inputs, settings["vocab_size"])
    given = {name: torch.from_numpy(array) for name, array in np.load(inputs).items()}
    with torch.no_grad():
        result = model(
            input_ids=given["src_tokens"],
            patch_images=given.get("patch_images"),
            patch_masks=given.get("patch_masks"),
            decoder_input_ids=given["prev_output_tokens"],
            code_masks=given.get("code_masks"),
        )
    logits = result.logits.numpy()
    np.savez(outputs, logits=logits)
    print(f"{outputs}: logits {logits.shape} of {len(model.state_dict())} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
