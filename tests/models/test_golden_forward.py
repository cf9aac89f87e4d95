"""Values of the forward pass against numbers measured with the official code, in f32 to 1e-4 and with layers as a scan too."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.models.ofa import OFA
from ofa_jax.train.loss import block_loss, group_sums

_SPEC = importlib.util.spec_from_file_location("models_golden", pathlib.Path(__file__).with_name("golden.py"))
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

CODE_MASKS = {"000": [False, False, False], "111": [True, True, True], "010": [False, True, False]}


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected), rtol=0, atol=tolerance)


def test_field_spot_values():
    close(golden.pixels().transpose(0, 3, 1, 2).reshape(-1)[:3], [-0.63008022, 0.70571642, -0.27976135], 1e-7)
    close(golden.parameter("encoder.embed_tokens.weight", (320, 32))[5, :3], [0.2886292, -0.64405401, 0.44983597], 1e-7)
    close(golden.parameter("encoder.layers.0.self_attn.q_proj.weight", (32, 32))[1, :3], [-0.06218586, 0.17301265, 0.28450553], 1e-7)
    close(golden.parameter("encoder.embed_images.conv1.weight", (64, 3, 7, 7))[0, 0, 0, :3], [0.08531726, 0.13105586, 0.04417181], 1e-7)
    close(golden.parameter("encoder.layers.0.self_attn.c_attn", (4,)), [0.9818458, 1.04276627, 0.98442635, 1.08786181], 1e-7)
    table = golden.parameter("encoder.image_rel_pos_table_list.0.weight", (6892, 4))
    close(table[3444], [-0.23218496, 0.40466579, 0.44160619, -0.4064881], 1e-7)


@pytest.fixture(scope="module", params=["unroll", "scan"])
def outputs(request):
    graphdef, params, stats = golden.build(dataclasses.replace(golden.MODEL, layers=request.param))

    @jax.jit
    def forward(params, stats, pixels):
        model: OFA = nnx.merge(graphdef, params)
        features, kept = model.resnet(pixels, stats=stats, train=False)
        text = model.encode(golden.SOURCE_IDS)
        flat = features.reshape(3, 24, -1)
        both = model.encode(golden.SOURCE_IDS, flat, image_mask=golden.IMAGE_MASK, grid=(4, 6))
        logits = {name: model.logits(model.decode(both, golden.DECODER_IDS, jnp.asarray(mask))) for name, mask in CODE_MASKS.items()}
        logits["none"] = model.logits(model.decode(both, golden.DECODER_IDS))
        logits["all"] = model.logits(model.decode(both, golden.DECODER_IDS, code_rows="all"))
        return {"features": features, "text": text, "both": both, "logits": logits, "kept": kept}

    out = jax.device_get(forward(params, stats, golden.pixels().astype(np.float32)))
    assert jax.tree.all(jax.tree.map(np.array_equal, out["kept"], stats)), "evaluation must not move the running statistics"
    return out


def test_resnet(outputs):
    features = outputs["features"]
    assert features.shape == (3, 4, 6, 1024)
    close(features.mean(), 1.134140)
    close(features[0, 1, 2, :4], [1.042773, 2.029222, 0.662466, 1.889500])


def test_encoder_text_only(outputs):
    states = outputs["text"].states
    close(np.abs(states).mean(), 0.785492)
    close(states[0, 0, :4], [-0.48131, -0.12671, 1.65732, 0.41509])
    close(states[1, 4, :4], [-0.89145, 0.78894, 1.56533, 0.35087])


def test_encoder_image_and_text(outputs):
    encoded = outputs["both"]
    states, mask, positions = encoded.states, encoded.mask, encoded.positions
    assert states.shape == (3, 33, 32)
    close(np.abs(states).mean(), 0.796695)
    close(states[0, 0, :4], [-0.99595, 2.11399, 1.84152, -1.51670])
    close(states[1, 0, :4], [-0.95421, 2.37208, 1.52710, -1.61957])
    close(states[1, 28, :4], [-0.73587, 1.20980, 1.69143, -0.54854])
    close(states[2, 30, :4], [0.06926, -0.21006, 1.09404, 0.77194])
    assert (~mask).sum(1).tolist() == [0, 3, 24]
    close([np.abs(states[i][mask[i]]).mean() for i in range(3)], [0.792227, 0.802979, 0.779603])
    close(positions[0, 0, :3], [-1.05612, 0.44630, 1.05332])
    close(positions[0, -1, :3], [0.44217, 1.16839, -1.47104])


TEXT = ([1.74424, -3.15835, -0.78411, 3.66405], [4.96986, 0.48739, 5.33843, -2.91559], [4.13820, 7.03970, 4.85796])
CODE = ([1.66415, -2.15448, -0.43861, 3.69544], [4.40863, 1.54179, 4.41177, -2.26711], [2.12614, 8.38265, 4.49808])


@pytest.mark.parametrize(
    ("mode", "rows"),
    [("000", (TEXT, TEXT, TEXT)), ("111", (CODE, CODE, CODE)), ("010", (TEXT, CODE, TEXT)), ("none", (TEXT,) * 3), ("all", (CODE,) * 3)],
)
def test_logits(outputs, mode, rows):
    logits = outputs["logits"][mode][..., : golden.VOCAB.size]
    close(logits[0, 0, :4], rows[0][0])
    close(logits[1, 11, 100:104], rows[1][1])
    close(logits[2, 8, -3:], rows[2][2])


def test_logits_whole(outputs):
    size = golden.VOCAB.size
    text, code = outputs["logits"]["000"][..., :size], outputs["logits"]["111"][..., :size]
    assert text[0].argmax(-1).tolist() == [15, 51, 121, 245, 294, 119, 64, 64, 64, 150, 104, 185]
    assert code[0].argmax(-1).tolist() == [15, 51, 81, 81, 294, 236, 64, 64, 64, 150, 104, 185]
    rows = [np.abs(text[0]).mean(), np.abs(text[1]).mean(), np.abs(text[2, :9]).mean()]
    close(rows, [2.571620, 2.611219, 2.457610])
    rows = [np.abs(code[0]).mean(), np.abs(code[1]).mean(), np.abs(code[2, :9]).mean()]
    close(rows, [2.584249, 2.611792, 2.479409])
    close(outputs["logits"]["010"][1][..., :size], code[1])
    padded = np.exp(outputs["logits"]["000"] - outputs["logits"]["000"].max(-1, keepdims=True))[..., size:]
    assert padded.size and (padded == 0).all(), "rows that pad the vocabulary must have probability 0"


@pytest.mark.parametrize(("config", "confidence", "expected", "num_tokens"), golden.LOSSES)
@pytest.mark.parametrize("chunk", [0, 5])
def test_losses(outputs, config, confidence, expected, num_tokens, chunk):
    targets = golden.TARGET_IDS
    if config.constraint_range:
        targets = golden.within(targets, config.constraint_range)
    config = dataclasses.replace(config, logit_chunk=chunk)
    block = block_loss(
        jnp.asarray(outputs["logits"]["000"]), logits_of=lambda logits: logits, target_ids=jnp.asarray(targets),
        confidence=jnp.ones(3) if confidence is None else jnp.asarray(confidence), task_ids=jnp.zeros(3, int), num_tasks=1,
        vocab_size=golden.VOCAB.size, config=config,
    )  # fmt: skip
    sums = group_sums([block], config=config, step=1)
    assert float(sums.num_tokens) == num_tokens
    np.testing.assert_allclose(sums.loss, expected, rtol=2e-6)
