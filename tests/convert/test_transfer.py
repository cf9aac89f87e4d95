"""launch/convert.py on real files: import, export and import again; what it describes; ten inputs that it must refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import runpy
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.schema import VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert.names import EMBEDDING
from ofa_jax.convert.state_files import read_state, write_npz
from ofa_jax.convert.torch_file import write_torch
from ofa_jax.convert.transfer import restore
from ofa_jax.convert.weights import from_state, to_state

ROOT = Path(__file__).resolve().parents[2]
CODES = ("--config.vocab.num_text=300", "--config.vocab.num_codes=16", "--config.vocab.num_bins=4")


def convert(*words) -> tuple[int, str, str]:
    """(exit code, output, errors) of `launch/convert.py words`, run in this process: importing JAX takes longer than the command."""
    main = runpy.run_path(str(ROOT / "launch" / "convert.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["launch/convert.py", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def released(small, golden, tmp_path_factory):
    """A fairseq-layout file as a release has it: the model, an average of the weights, settings."""
    folder = tmp_path_factory.mktemp("released")
    floats = {name: array.astype(np.float32) for name, array in golden.state(small).items()}
    state = to_state(from_state(floats, small, golden.VOCAB, where="field"), small, golden.VOCAB)
    ema = {name: array * np.float32(0.5) if array.dtype == np.float32 else array for name, array in state.items()}
    ema = {name: state[name] if "version" in name else array for name, array in ema.items()}
    ema.update(dict.fromkeys(("decoder.embed_tokens.weight", "decoder.output_projection.weight"), ema[EMBEDDING]))
    path = folder / "checkpoint.pt"
    write_torch(path, {"args": None, "cfg": {"model": {"arch": "ofa_small"}}, "model": state, "extra_state": {"ema": ema}})
    return path, state


@pytest.fixture(scope="module")
def run(released, tmp_path_factory):
    """The imported run."""
    out = tmp_path_factory.mktemp("runs") / "imported"
    code, said, errors = convert("import", released[0], f"--out={out}", *CODES)
    assert code == 0, errors
    assert "fairseq, " in said and f"{out}: checkpoint of step 0" in said
    return out


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("layout", ["hf", "fairseq", pytest.param("npz", marks=pytest.mark.full)])
def test_import_export_import_is_the_identity(released, run, layout, small, tmp_path):
    exported = tmp_path / "exported"
    assert convert("export", run, f"--out={exported}", f"--layout={layout}")[0] in ((0,) if layout != "hf" else (0, 2))
    if layout == "hf":  # a ResNet of this width is not among those of the HF-style config
        assert not exported.exists()
        return
    stored = read_state(exported).tensors
    same(stored, released[1])
    again = tmp_path / "again"
    assert convert("import", exported, f"--out={again}", *CODES)[0] == 0
    first, second = restore(run)[1], restore(again)[1]
    for tree in ("params", "stats"):
        for a, b in zip(jax.tree.leaves(getattr(first, tree)), jax.tree.leaves(getattr(second, tree)), strict=True):
            assert a.tobytes() == b.tobytes()


def test_adapters_and_prompts_go_out_and_in_again(golden, small, tmp_path):
    """The parts of OFA's light fine-tuning: recognised by their shapes; HF-style folders have no place for them."""
    model = dataclasses.replace(small, adapter_width=6, prompt_lens=(3, 5))
    state = {name: array.astype(np.float32) for name, array in golden.state(model).items()}
    write_npz(tmp_path / "light.npz", state)
    code, _, errors = convert("import", tmp_path / "light.npz", f"--out={tmp_path / 'run'}", *CODES)
    assert code == 0, errors
    assert CheckpointManager(tmp_path / "run", read_only=True).config().model.prompt_lens == (3, 5)
    assert convert("export", tmp_path / "run", f"--out={tmp_path / 'out.pt'}", "--layout=fairseq")[0] == 0
    found = read_state(tmp_path / "out.pt").tensors
    assert all(found[name].tobytes() == array.tobytes() for name, array in state.items())
    assert found["decoder.decoder_prompt_encoder.embedding.weight"].shape == (5, 2 * 32 * model.decoder_layers)
    code, _, errors = convert("export", tmp_path / "run", f"--out={tmp_path / 'folder'}")
    assert code == 2 and "found adapters of width 6 and prompts of (3, 5) places" in errors and not (tmp_path / "folder").exists()


@pytest.mark.full
@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_real_sizes_through_files(size, golden, tmp_path):
    """npz -> run -> HF-style folder -> run -> fairseq file: the same bits at the end, with the vocabulary's table."""
    # One at a time and none kept: the huge size is 3.7 GB, and the programs' own copies are what is looked at.
    shapes = golden.shapes(SIZES[size], VocabConfig())
    write_npz(tmp_path / "state.npz", {name: golden.parameter(name, shape).astype(np.float32) for name, shape in shapes.items()})
    table = [*map(str, range(50_256, -1, -1)), *(f"madeupword{i:04d}" for i in range(3))]  # GPT-2's pieces in an order of our own
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in table))
    steps = (
        ("import", "state.npz", "first", f"--bpe={tmp_path}"),
        ("export", "first", "folder", "--layout=hf"),
        ("import", "folder", "second"),
        ("export", "second", "again.pt", "--layout=fairseq"),
    )
    for command, source, out, *flags in steps:
        code, _, errors = convert(command, tmp_path / source, f"--out={tmp_path / out}", *flags)
        assert code == 0, errors
    for run in ("first", "second"):
        assert (tmp_path / run / "dict.txt").read_text() == (tmp_path / "dict.txt").read_text()
    given, found = read_state(tmp_path / "state.npz").tensors, read_state(tmp_path / "again.pt").tensors
    assert set(given) == set(shapes)
    for name, array in given.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_an_imported_run_is_a_run(run, small, golden):
    manager = CheckpointManager(run, read_only=True)
    config = manager.config()
    assert manager.steps() == [0] and config.vocab.num_codes == 16 and config.model.encoder_layers == small.encoder_layers
    assert json.loads((run / "config.json").read_text())["model"]["width"] == 32
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json"]


def test_the_average_is_another_part(released, tmp_path):
    assert convert("import", released[0], "--ema", f"--out={tmp_path / 'ema'}", *CODES)[0] == 0
    params = restore(tmp_path / "ema")[1].params
    np.testing.assert_array_equal(params["encoder"]["norm"]["bias"], released[1]["encoder.layer_norm.bias"] * np.float32(0.5))


def test_what_any_checkpoint_is(released, run):
    theirs, ours = convert("describe", released[0])[1], convert("describe", run)[1]
    for text in (theirs, ours):
        assert "3 + 1" in text and "32, 64, 4" in text
    assert "fairseq, fairseq's names" in theirs and "steps" in ours and "300 text + 16 codes + 4 bins" in ours
    code, said, _ = convert("diff-config", run, run)
    assert code == 0 and "equal" in said
    code, said, _ = convert("diff-config", run, f"{ROOT}/configs/ofa_tiny.py")
    assert code == 1 and "model.width: 32 -> 256" in said


def test_first_weights_of_bart(golden, tmp_path):
    """A BART of the golden model's width in the names of transformers; positions are two rows on, what OFA adds stays as drawn."""
    rng, width = np.random.default_rng(0), 32
    names = {"model.shared.weight": (290, width), "final_logits_bias": (1, 290)}
    for stack, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        names |= {f"model.{stack}.embed_positions.weight": (1026, width), f"model.{stack}.layernorm_embedding.weight": (width,)}
        for layer in range(2):
            at = f"model.{stack}.layers.{layer}"
            for attention in attentions:
                names |= {f"{at}.{attention}.{p}_proj.weight": (width, width) for p in ("q", "k", "v", "out")}
                names |= {f"{at}.{attention}_layer_norm.weight": (width,)}
            names |= {f"{at}.fc1.weight": (64, width), f"{at}.fc2.weight": (width, 64), f"{at}.final_layer_norm.bias": (width,)}
    bart = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    np.savez(tmp_path / "bart.npz", **bart)
    (tmp_path / "small.py").write_text(
        "from ofa_jax.config.schema import ModelConfig, RunConfig, VocabConfig\n\n\ndef get_config(arg=''):\n"
        "    model = ModelConfig(width=32, ffn_width=64, num_heads=4, encoder_layers=2, decoder_layers=2)\n"
        "    return RunConfig(name='small', model=model, vocab=VocabConfig(num_text=300, num_codes=16, num_bins=4))\n"
    )
    config = f"--config={tmp_path / 'small.py'}"
    code, said, errors = convert("import", tmp_path / "bart.npz", f"--out={tmp_path / 'b'}", "--part=bart", config)
    assert code == 0, errors
    assert "filled: " in said and "encoder.layers.*.fc1 (2)" in said and "without a place in OFA: 1 tensors\n  final_logits_bias" in said
    assert "encoder.layers.*.attn_ln (4)" in said and "--config.init.parts=embedding,encoder,decoder" in said
    params = restore(tmp_path / "b")[1].params
    np.testing.assert_array_equal(params["embedding"]["table"][:290], bart["model.shared.weight"])
    np.testing.assert_array_equal(params["encoder"]["positions"]["text"]["table"][:1024], bart["model.encoder.embed_positions.weight"][2:])
    np.testing.assert_array_equal(
        params["decoder"]["layers"]["cross_attention"]["query"]["kernel"][1], bart["model.decoder.layers.1.encoder_attn.q_proj.weight"].T
    )
    assert np.unique(params["encoder"]["layers"]["self_attention"]["head_scale"]).tolist() == [1.0]


@pytest.mark.full
def test_first_weights_of_an_imagenet_resnet(golden, tmp_path):
    prefix = "encoder.embed_images."
    resnet = {name.removeprefix(prefix): array.astype(np.float32) for name, array in golden.state().items() if name.startswith(prefix)}
    resnet |= {"bn1.num_batches_tracked": np.zeros((), np.int64), "fc.weight": np.zeros((10, 2048), np.float32)}
    np.savez(tmp_path / "resnet.npz", **resnet)
    (tmp_path / "small.py").write_text(
        "from ofa_jax.config.schema import ModelConfig, RunConfig, VocabConfig\n\n\ndef get_config(arg=''):\n"
        "    model = ModelConfig(width=32, ffn_width=64, num_heads=4, encoder_layers=1, decoder_layers=1)\n"
        "    return RunConfig(name='small', model=model, vocab=VocabConfig(num_text=300, num_codes=16, num_bins=4))\n"
    )
    flags = (f"--config={tmp_path / 'small.py'}", "--part=resnet")
    code, said, errors = convert("import", tmp_path / "resnet.npz", f"--out={tmp_path / 'r'}", *flags)
    assert code == 0, errors
    assert "without a place in OFA: 1 tensors\n  fc (1)" in said and "left as drawn: 0" in said
    weights = restore(tmp_path / "r")[1]
    np.testing.assert_array_equal(weights.params["resnet"]["stem"], resnet["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(weights.stats["stage2"]["rest"]["norm3"]["var"][2], resnet["layer2.3.bn3.running_var"])
    del resnet["layer3.5.conv2.weight"]
    np.savez(tmp_path / "less.npz", **resnet)
    code, _, errors = convert("import", tmp_path / "less.npz", f"--out={tmp_path / 'l'}", *flags)
    assert code == 2 and "layer3.5.conv2.weight" in errors and not (tmp_path / "l").exists()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def hostile_pickle(path, state, marker):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Hostile(marker)}, protocol=2))
        archive.writestr("archive/version", "3\n")


def without(state, *names):
    return {name: array for name, array in state.items() if name not in names}


REFUSED = {
    "truncated": (lambda path, state, marker: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "x.pt"),
    "wrong size": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "decoder.layers.0.fc1.weight": np.zeros((64, 31), np.float32)}}),
        "other shape: decoder.layers.0.fc1.weight found (64, 31), expected (64, 32)",
    ),
    "missing layer": (
        lambda path, state, marker: write_torch(path, {"model": without(state, *(n for n in state if n.startswith("encoder.layers.1.")))}),
        "missing: encoder.layers.1.self_attn.c_attn (4,)",
    ),
    "extra key": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "encoder.pooler.weight": np.zeros(3, np.float32)}}),
        "not expected: encoder.pooler.weight (3,)",
    ),
    "NaN weights": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "encoder.pos_ln.bias": np.full(32, np.nan, np.float32)}}),
        "not finite: encoder.pos_ln.bias has 32 NaN",
    ),
    "hostile pickle": (hostile_pickle, "system"),
    "wrong dtype": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "encoder.pos_ln.bias": np.zeros(32, np.int64)}}),
        "other dtype: encoder.pos_ln.bias found int64, expected a float",
    ),
    "other vocabulary": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "decoder.embed_tokens.weight": np.zeros((321, 32), np.float32)}}),
        "not tied: decoder.embed_tokens.weight differs from encoder.embed_tokens.weight",
    ),
    "other head count": (
        lambda path, state, marker: write_torch(path, {"model": {**state, "decoder.layers.0.encoder_attn.c_attn": np.ones(8, np.float32)}}),
        "other shape: decoder.layers.0.encoder_attn.c_attn found (8,), expected (4,)",
    ),
    "empty file": (lambda path, state, marker: path.write_bytes(b""), "x.pt"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_written(released, kind, tmp_path):
    break_it, message = REFUSED[kind]
    path, marker, out = tmp_path / "x.pt", tmp_path / "executed", tmp_path / "out"
    path.write_bytes(released[0].read_bytes())
    break_it(path, released[1], marker)
    code, said, errors = convert("import", path, f"--out={out}", *CODES)
    assert code == 2 and message in errors, errors
    assert "x.pt" in errors and said == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt"], "something was written or executed"


def test_a_gpt2_vocabulary_needs_its_table(tmp_path, small):
    """With another order of ids the weights would read other words, so none is guessed."""
    import dataclasses

    from ofa_jax.config.schema import VocabConfig
    from ofa_jax.convert.weights import shapes

    tiny = dataclasses.replace(small, width=8, ffn_width=8, num_heads=1)
    state = {name: np.zeros(shape, np.float16) for name, shape in shapes(tiny, VocabConfig()).items()}
    np.savez(tmp_path / "s.npz", **state)
    code, _, errors = convert("import", tmp_path / "s.npz", f"--out={tmp_path / 'out'}")
    assert code == 2 and "expected --bpe=FOLDER with OFA's dict.txt" in errors
    assert not (tmp_path / "out").exists()
    bad = tmp_path / "dict.txt"
    bad.write_text("13 1\n")
    code, _, errors = convert("import", tmp_path / "s.npz", f"--out={tmp_path / 'out'}", f"--bpe={bad}")
    assert code == 2 and "found 1 lines, expected 50260" in errors
    assert not (tmp_path / "out").exists()
