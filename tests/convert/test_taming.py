"""VQGANs of taming-transformers in and out: names, structure from shapes, files of Lightning, comparison, faults."""

from __future__ import annotations

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest

from launch import convert
from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import VQGANConfig
from ofa_jax.convert import taming, vqgan_files
from ofa_jax.convert.state_files import read_state, write_npz, write_safetensors
from ofa_jax.convert.torch_file import write_torch
from tests.convert.torch_bytes import Call, tensor, write_zip

# Other dimensions than the published ones, all with 32 groups, as in every model of taming's.
NARROW = VQGANConfig(width=32, multiples=(1, 2), num_blocks=1, attention_levels=(), latent_width=8, code_width=8, num_codes=9)
STRUCTURES = {
    "golden": VQGANConfig(width=32, attention_levels=(3,), latent_width=16, code_width=16, num_codes=64),
    "nearest": dataclasses.replace(NARROW, quantizer="nearest"),
    "f16": dataclasses.replace(NARROW, multiples=(1, 1, 2, 2, 4), num_blocks=2, attention_levels=(4,), latent_width=12, code_width=10),
    "two_attentions": dataclasses.replace(NARROW, multiples=(1, 2, 4), num_blocks=3, attention_levels=(1, 2)),
}


MODEL = NARROW  # of the files that tests write


@pytest.fixture(scope="module")
def state(golden):
    return {name: array.astype(np.float32) for name, array in golden.vqgan_state(MODEL).items()}


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_structure_is_read_from_shapes_and_weights_come_back(golden, name):
    state = {key: array.astype(np.float32) for key, array in golden.vqgan_state(STRUCTURES[name]).items()}
    config = taming.config_of(state, where="x")
    assert config == STRUCTURES[name]
    back = taming.to_state(taming.from_state(state, config, where="x"), config)
    assert list(back) == list(taming.shapes(config)) and set(back) == set(state)
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_names_are_those_of_the_published_checkpoint():
    names = taming.shapes(VQGANConfig())
    assert names["encoder.conv_in.weight"] == (128, 3, 3, 3) and names["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert names["encoder.down.3.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert {name for name in names if "nin_shortcut.weight" in name} == {
        *(f"encoder.down.{level}.block.0.nin_shortcut.weight" for level in (2, 3)),
        *(f"decoder.up.{level}.block.0.nin_shortcut.weight" for level in (1, 2)),
    }
    assert {name for name in names if "sample" in name and name.endswith("weight")} == {
        *(f"encoder.down.{level}.downsample.conv.weight" for level in (0, 1, 2)),
        *(f"decoder.up.{level}.upsample.conv.weight" for level in (1, 2, 3)),
    }
    assert names["quantize.proj.weight"] == (8192, 256, 1, 1) and names["quantize.embed.weight"] == (8192, 256)


def test_import_export_import_is_the_identity(state, tmp_path, capsys):
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": {**state, "loss.discriminator.main.0.weight": np.ones((64, 3, 4, 4), np.float32)},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": np.ones(3, np.float32)}}}],
    }
    write_torch(tmp_path / "last.ckpt", lightning)
    first, second = tmp_path / "first", tmp_path / "second"
    assert convert.main(["convert", "import", str(tmp_path / "last.ckpt"), f"--out={first}", "--part=vqgan"]) == 0
    assert "left out, as no part of the model: 1 tensors below loss." in capsys.readouterr().out
    assert convert.main(["convert", "export", str(first), f"--out={tmp_path / 'out.ckpt'}"]) == 0
    assert convert.main(["convert", "export", str(first), f"--out={tmp_path / 'out.npz'}", "--layout=npz"]) == 0
    assert convert.main(["convert", "import", str(tmp_path / "out.ckpt"), f"--out={second}", "--part=vqgan"]) == 0
    for path in ("out.ckpt", "out.npz"):
        back = read_state(tmp_path / path).tensors
        assert set(back) == set(state) and all(np.array_equal(back[name], state[name]) for name in state)
    model, params, _ = vqgan_files.restore_vqgan(second)
    assert model == MODEL
    assert jax.tree.all(jax.tree.map(np.array_equal, params, taming.from_state(state, model, where="x")))
    capsys.readouterr()
    for path, form in ((first, "ofa_jax"), (tmp_path / "out.npz", "npz, taming-transformers' names")):
        assert convert.main(["convert", "describe", str(path)]) == 0
        said = capsys.readouterr().out
        assert form in said and "VQGAN f=2, gumbel quantiser of 9 codes" in said
    assert convert.main(["convert", "export", str(first), f"--out={tmp_path / 'x'}", "--layout=hf"]) == convert.EXIT_MISTAKE
    assert "expected one of taming, npz" in capsys.readouterr().err


def test_states_of_lightning_s_callbacks_do_no_harm(state, tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    some = dict(list(state.items())[:3])
    held = {"state_dict": {name: tensor(str(key), array) for key, (name, array) in enumerate(some.items())}}
    write_zip(tmp_path / "last.ckpt", {**held, "callbacks": {callback: {"best_model_score": 1.5}}})
    back = read_state(tmp_path / "last.ckpt").tensors
    assert set(back) == set(some) and all(np.array_equal(back[name], some[name]) for name in some)
    write_zip(tmp_path / "call.ckpt", {**held, "callbacks": Call(callback)})
    with pytest.raises(ConvertError, match="what no pickler of weights writes"):
        read_state(tmp_path / "call.ckpt")


def test_verify_compares_with_stored_outputs(golden, state, tmp_path, capsys):
    model = MODEL
    pixels = golden.vqgan_pixels().transpose(0, 3, 1, 2).astype(np.float32)
    expected = vqgan_files.run(taming.from_state(state, model, where="x"), pixels, model)
    write_safetensors(tmp_path / "state.safetensors", state, {})
    write_npz(tmp_path / "inputs.npz", {"x": pixels})
    command = ["convert", "verify", f"--state={tmp_path / 'state.safetensors'}", f"--inputs={tmp_path / 'inputs.npz'}"]

    def verify(arrays):
        write_npz(tmp_path / "expected.npz", arrays)
        return convert.main([*command, f"--expected={tmp_path / 'expected.npz'}"])

    assert verify(expected) == 0
    assert "all 4 arrays agree" in capsys.readouterr().out
    assert verify({"codes": expected["codes"].reshape(2, 16, 16), "rec": expected["rec"]}) == 0
    assert verify({**expected, "codes": expected["codes"] + (np.arange(256) == 3)}) == convert.EXIT_DIFFERS
    assert "2 codes differ" in capsys.readouterr().out
    assert verify({**expected, "rec": expected["rec"] + 1e-3}) == convert.EXIT_DIFFERS
    assert verify({"z": expected["h"]}) == convert.EXIT_MISTAKE
    write_npz(tmp_path / "inputs.npz", {"x": pixels[:, :, :31]})
    assert verify(expected) == convert.EXIT_MISTAKE
    assert "expected sides that are multiples of 2" in capsys.readouterr().err


FAULTS = {
    "missing": ({"quantize.proj.bias": None}, "missing: quantize.proj.bias (9,)"),
    "more": ({"encoder.extra": np.ones(3, np.float32)}, "not expected: encoder.extra (3,)"),
    "shape": ({"decoder.conv_in.bias": np.ones(5, np.float32)}, "other shape: decoder.conv_in.bias found (5,), expected (64,)"),
    "nan": ({"quant_conv.bias": np.full(8, np.nan, np.float32)}, "not finite: quant_conv.bias has 8"),
    "integers": ({"quant_conv.bias": np.ones(8, np.int64)}, "other dtype: quant_conv.bias found int64"),
    "another model": ({"encoder.conv_in.weight": None}, "found no encoder.conv_in.weight among"),
    "widths": ({"encoder.down.1.block.0.conv1.weight": np.ones((40, 32, 3, 3), np.float32)}, "expected multiples of encoder.conv_in's 32"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_listed_and_nothing_is_written(state, tmp_path, name):
    change, said = FAULTS[name]
    write_npz(tmp_path / "state.npz", {name: array for name, array in {**state, **change}.items() if array is not None})
    with pytest.raises(ConvertError) as error:
        vqgan_files.import_vqgan(tmp_path / "state.npz", tmp_path / "run", progress=lambda _: None)
    assert said in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_all_faults_are_told_at_once_and_a_truncated_file_is_refused(state, tmp_path):
    broken = dataclasses.replace(MODEL, num_codes=8)
    with pytest.raises(ConvertError, match="found 3 fault"):
        taming.from_state(state, broken, where="x")
    write_torch(tmp_path / "last.ckpt", {"state_dict": state})
    data = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConvertError, match="cut off or damaged"):
        vqgan_files.import_vqgan(tmp_path / "last.ckpt", tmp_path / "run", progress=lambda _: None)
    assert not (tmp_path / "run").exists()
