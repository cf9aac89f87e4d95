"""Times the training step of PyPI modelscope's OFA (PyTorch) on noise; `launch/bench.py train --peer=PYTHON` runs it.

    PYTHON tests/parity/modelscope_train.py SETTING.json ANSWER.json

PYTHON is an environment as modelscope_ofa.py describes. The setting (`ofa_jax/bench/training.py` writes it) has the model's config, the
blocks to run in one step, each sequence with a picture of its own, precision and optimizer. Untuned the model is as it is published, with
automatic mixed precision; tuned its ResNet runs channels-last and compiled, and cuDNN searches for its fastest convolutions. Weights are
drawn; the loss is the cross-entropy of all targets, the gradient is clipped by its norm, the optimizer is AdamW, fused where it can be.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from modelscope_ofa import load_package

WARM_UP = 3


def main(asked: Path, answer: Path) -> int:
    """Writes the seconds of a step by group of steps, the sequences of one, threads and most bytes in use."""
    import torch

    setting = json.loads(asked.read_text())
    configuration, modeling = load_package()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if device.type == "cuda":  # products of float32 as Ampere's and later chips are meant to run them, for both programs
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = setting["tuned"]
    model = modeling.OFAModel(configuration.OFAConfig(**setting["model"])).to(device).train()
    front = model.encoder.embed_images
    if setting["image_norm"] == "frozen":
        for module in front.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    if setting["tuned"]:
        front.to(memory_format=torch.channels_last)
        if device.type == "cuda":
            front.forward = torch.compile(front.forward)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=setting["learning_rate"], betas=setting["betas"], eps=setting["eps"],
        weight_decay=setting["weight_decay"], fused=device.type == "cuda",
    )  # fmt: skip
    blocks = [noise(torch, block, device, tuned=setting["tuned"]) for block in setting["blocks"]]

    def mixed():
        return torch.autocast(device.type, torch.bfloat16) if setting["precision"] == "bf16" else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(block["targets"].numel() for block in blocks)
        for block in blocks:
            with mixed():
                logits = model(**block["given"]).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), block["targets"].flatten(), reduction="sum")
            (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setting["clip_norm"])
        optimizer.step()

    def waited(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    for _ in range(WARM_UP):
        waited(1)
    found = {
        "step_s": [waited(setting["group"]) for _ in range(-(-setting["steps"] // setting["group"]))],
        "sequences": sum(block["rows"] for block in setting["blocks"]),
        "threads": torch.get_num_threads(),
        "program": f"modelscope's OFA, torch {torch.__version__} on {torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}",
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }
    answer.write_text(json.dumps(found))
    return 0


def noise(torch, block: dict, device, *, tuned: bool) -> dict:
    """Returns the model's arguments and the targets of one block, drawn."""

    def ids(length: int):
        return torch.randint(4, 200, (block["rows"], length), device=device)

    given = {"input_ids": ids(block["source_len"]), "decoder_input_ids": ids(block["target_len"])}
    if block["image_px"]:
        pixels = torch.rand(block["rows"], 3, block["image_px"], block["image_px"], device=device) * 2 - 1
        given["patch_images"] = pixels.contiguous(memory_format=torch.channels_last) if tuned else pixels
        given["patch_masks"] = torch.ones(block["rows"], dtype=torch.bool, device=device)
        if block["num_patches"]:
            given["sample_patch_num"] = block["num_patches"]
    return {"given": given, "targets": ids(block["target_len"])}


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
