"""Times the beam search of PyPI modelscope's OFA (PyTorch) on an exported folder; `launch/bench.py decode --peer=PYTHON` runs it.

    PYTHON tests/parity/modelscope_decode.py FOLDER INPUTS.npz OUT.npz '{"beam": 5, "max_len": 16, "no_repeat_ngram": 3, "repeats": 3}'

PYTHON is an environment as modelscope_ofa.py describes. Writes the best hypothesis of every row, its score, and the fastest times in
seconds: of the encoder, and of everything behind it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from modelscope_ofa import load_package


class Ids:
    """What the generator asks of a tokenizer: the special ids and how many ids there are."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = 0, 1, 2, 3

    def __init__(self, size: int):
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self._size)}

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def add_symbol(self, symbol: str) -> int:  # of a constraint range, which is not used here
        raise KeyError(symbol)


def main(folder: Path, inputs: Path, out: Path, setting: dict) -> int:
    """Runs the search `repeats` times after one that only warms up."""
    import modelscope
    import torch
    from safetensors.torch import load_file

    configuration, modeling = load_package()
    name = "modelscope.models.multi_modal.ofa.generate"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(modelscope.__path__[0]) / "models" / "multi_modal" / "ofa" / "generate")]
    sys.modules[name] = package
    generation = importlib.import_module(f"{name}.sequence_generator")

    settings = json.loads((folder / "config.json").read_text())
    model = modeling.OFAModel(configuration.OFAConfig(**settings)).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    stored = np.load(inputs)
    sample = {
        "net_input": {
            "input_ids": torch.from_numpy(stored["src_tokens"]),
            "patch_images": torch.from_numpy(stored["patch_images"]),
            "patch_masks": torch.ones(len(stored["src_tokens"]), dtype=torch.bool),
        }
    }
    generator = generation.SequenceGenerator(
        Ids(settings["vocab_size"]), beam_size=setting["beam"], max_len_b=setting["max_len"], min_len=1,
        no_repeat_ngram_size=setting["no_repeat_ngram"],
    )  # fmt: skip
    encoder_s: list[float] = []
    whole_s: list[float] = []
    encode = generation.EnsembleModel.forward_encoder

    def timed(self, net_input):
        start = time.perf_counter()
        found = encode(self, net_input)
        encoder_s.append(time.perf_counter() - start)
        return found

    generation.EnsembleModel.forward_encoder = timed
    for _ in range(1 + setting["repeats"]):
        start = time.perf_counter()
        found = generator.generate([model], sample)
        whole_s.append(time.perf_counter() - start)
    best = [row[0] for row in found]
    width = setting["max_len"] + 1
    ids = np.ones((len(best), width), np.int32)
    for row, hypothesis in enumerate(best):
        ids[row, : len(hypothesis["tokens"])] = hypothesis["tokens"].numpy()
    search_s = min(whole - encoder for whole, encoder in zip(whole_s[1:], encoder_s[1:], strict=True))
    scores = np.array([float(hypothesis["score"]) for hypothesis in best])
    np.savez(out, ids=ids, scores=scores, encoder_s=min(encoder_s[1:]), search_s=search_s, threads=torch.get_num_threads())
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4])))
