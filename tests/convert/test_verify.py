"""`verify` on the golden model: the official numbers through the command line, every intermediate array, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert import verify
from ofa_jax.convert.weights import from_state, to_state

ROOT = Path(__file__).resolve().parents[2]
# Positions whose values are known (model.md section 11); everything else of an expected array is our own, so one wrong number shows.
KNOWN = {
    "resnet": [((0, slice(0, 4), 1, 2), [1.042773, 2.029222, 0.662466, 1.889500])],
    "encoder_out": [
        ((0, 0, slice(0, 4)), [-0.99595, 2.11399, 1.84152, -1.51670]),
        ((1, 28, slice(0, 4)), [-0.73587, 1.20980, 1.69143, -0.54854]),
        ((2, 30, slice(0, 4)), [0.06926, -0.21006, 1.09404, 0.77194]),
    ],
    "position_embeddings": [((0, 0, slice(0, 3)), [-1.05612, 0.44630, 1.05332]), ((0, -1, slice(0, 3)), [0.44217, 1.16839, -1.47104])],
    "logits": [
        ((0, 0, slice(0, 4)), [1.74424, -3.15835, -0.78411, 3.66405]),
        ((1, 11, slice(100, 104)), [4.40863, 1.54179, 4.41177, -2.26711]),  # the code row
        ((2, 8, slice(-3, None)), [4.13820, 7.03970, 4.85796]),
    ],
}


@pytest.fixture(scope="module")
def case(golden):
    """(weights, inputs, our outputs) of the golden model, one row in code mode."""
    weights = from_state({k: v.astype(np.float32) for k, v in golden.state().items()}, golden.MODEL, golden.VOCAB, where="field")
    inputs = {
        "src_tokens": golden.SOURCE_IDS,
        "prev_output_tokens": golden.DECODER_IDS,
        "patch_images": golden.pixels().transpose(0, 3, 1, 2).astype(np.float32),
        "patch_masks": golden.IMAGE_MASK,
        "code_masks": np.array([False, True, False]),
        "src_lengths": (golden.SOURCE_IDS != 1).sum(1),
    }
    return weights, inputs, verify.run(weights, inputs, golden.MODEL, golden.VOCAB)


def test_outputs_are_the_official_ones(case):
    found = case[2]
    assert [name for name in found if "state" in name] == [f"{stack}_state_{i}" for stack in ("encoder", "decoder") for i in range(3)]
    for name, places in KNOWN.items():
        for place, values in places:
            np.testing.assert_allclose(found[name][place], values, rtol=0, atol=1e-4, err_msg=name)
    assert found["encoder_padding_mask"].sum(1).tolist() == [0, 3, 24]


def test_attention_of_the_last_layer_is_a_distribution(case, golden):
    looked = case[2]["cross_attn"]
    assert looked.shape == (3, 12, 33)
    np.testing.assert_allclose(looked.sum(-1), 1, atol=1e-5)
    assert (looked[2, :, :24] == 0).all(), "a hidden picture is not looked at"


def test_sampled_patches_are_gathered_in_the_given_order(case, golden):
    """With all patches in another order the image's states are permuted and nothing else changes."""
    weights, inputs, found = case
    order = np.random.default_rng(0).permutation(24)
    shuffled = verify.run(weights, {**inputs, "patch_orders": np.tile(order, (3, 1))}, golden.MODEL, golden.VOCAB)
    np.testing.assert_allclose(shuffled["encoder_out"][:2, :24], found["encoder_out"][:2, order], atol=2e-5)
    np.testing.assert_allclose(shuffled["logits"][:2], found["logits"][:2], atol=5e-5)
    some = verify.run(weights, {**inputs, "patch_orders": np.tile(order[:7], (3, 1))}, golden.MODEL, golden.VOCAB)
    assert some["encoder_out"].shape == (3, 16, 32) and np.abs(some["logits"][0] - found["logits"][0]).max() > 0.01


def test_errors_count_where_nothing_is_padded(case, golden):
    _, inputs, found = case
    expected = {name: found[name].copy() for name in ("logits", "encoder_out", "decoder_state_1", "encoder_padding_mask", "cross_attn")}
    expected["encoder_out"][1, 30] += 100  # a padded text position
    expected["logits"][2, 10] -= 100  # a padded target
    lines = verify.compare(found, expected, inputs, where="e.npz")
    assert [line.name for line in lines] == ["encoder_padding_mask", "encoder_out", "decoder_state_1", "cross_attn", "logits"]
    assert max(line.error for line in lines) == 0
    expected["logits"][0, 0, 0] += 1
    errors = {line.name: line.error for line in verify.compare(found, expected, inputs, where="e.npz")}
    assert errors["logits"] == pytest.approx(1 / expected["logits"][inputs["prev_output_tokens"] != 1].std(), rel=1e-3)
    wrong_shape = verify.compare(found, {"logits": expected["logits"][:, :5]}, inputs, where="e.npz")[0]
    assert wrong_shape.error == np.inf and "expected (3, 5, 320)" in wrong_shape.note
    with pytest.raises(ConvertError, match="found the array logit, expected some of resnet"):
        verify.compare(found, {"logit": expected["logits"]}, inputs, where="e.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src_tokens": None}, "src_tokens: found no such array"),
        ({"src_tokens": np.full((3, 9), 320)}, "found id 320, expected 0 to 319"),
        ({"src_lengths": np.array([9, 9, 9])}, r"src_lengths: found \[9, 9, 9\], expected \[9, 6, 9\]"),
        ({"patch_images": np.zeros((3, 3, 700, 32), np.float32)}, "a grid of 44x2 patches, expected at most 42x42"),
        ({"patch_orders": np.array([[24], [0], [0]])}, "patch_orders: found index 24, expected 0 to 23"),
        ({"patch_images": None}, "patch_masks: found it without patch_images"),
        ({"code_masks": np.zeros(2, bool)}, "code_masks: found 2 rows, expected 3"),
        ({"images": np.zeros(3)}, "images: found an unknown array"),
        ({"prev_output_tokens": np.zeros((3, 2), np.float32)}, "prev_output_tokens: found float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(case, golden, change, message):
    inputs = {name: array for name, array in {**case[1], **change}.items() if array is not None}
    with pytest.raises(ConvertError, match=message):
        verify.check_inputs(inputs, golden.MODEL, golden.VOCAB, where="i.npz")


CONFIG = """
from ofa_jax.config.schema import ModelConfig, RunConfig, VocabConfig


def get_config(arg=""):
    model = ModelConfig(width=32, ffn_width=64, num_heads=4, encoder_layers=2, decoder_layers=2, layers=arg or "unroll")
    return RunConfig(name="golden", model=model, vocab=VocabConfig(num_text=300, num_codes=16, num_bins=4))
"""


def test_the_command_line_says_what_differs_first(case, golden, tmp_path):
    """Scanned, from a config; then with one weight changed, from the weights alone."""
    weights, inputs, found = case
    (tmp_path / "golden.py").write_text(CONFIG)
    state = to_state(weights, golden.MODEL, golden.VOCAB)
    np.savez(tmp_path / "s.npz", **{name: array for name, array in state.items() if array.dtype == np.float32 and "version" not in name})
    np.savez(tmp_path / "i.npz", **inputs)
    np.savez(tmp_path / "e.npz", **found)
    state["decoder.layers.1.fc1.weight"] = state["decoder.layers.1.fc1.weight"] * np.float32(1.01)
    np.savez(tmp_path / "changed.npz", **state)

    def command(*words):
        files = ["--inputs=i.npz", "--expected=e.npz"]
        line = [sys.executable, str(ROOT / "launch" / "convert.py"), "verify", *files, *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = command("--config=golden.py:scan", "--state=s.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"all {len(found)} arrays agree within 1e-04" in done.stdout
    done = command("--state=changed.npz")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "first difference: decoder_state_2" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if "DIFFERS" in line] == ["decoder_state_2", "logits"]
