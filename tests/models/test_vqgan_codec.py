"""A VQGAN as compiled functions on uint8 pictures: batches, devices, its file."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import MeshConfig, VQGANConfig
from ofa_jax.models import vqgan
from ofa_jax.models.vqgan_codec import CODEC_FILE, Codec, codec_digest, keep_codec_file, load_codec_file, save_codec_file
from ofa_jax.parallel.mesh import make_mesh

CONFIG = VQGANConfig(
    width=8, multiples=(1, 2), num_blocks=1, attention_levels=(), latent_width=4, num_codes=20, code_width=4, norm_groups=4
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: vqgan.create(CONFIG, key)[1])(jax.random.key(0))


@pytest.fixture(scope="module")
def codec(params):
    return Codec(CONFIG, params, rows=4)


def pictures(num: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3)).astype(np.uint8)


def test_batches_of_any_number_give_the_codes_of_each_picture_alone(codec):
    images = pictures(10)
    codes = codec.encode(images)
    assert codes.shape == (10, 8, 8) and codes.dtype == np.int32
    for number in (0, 5, 9):
        np.testing.assert_array_equal(codec.encode(images[number : number + 1])[0], codes[number])
    assert codec.encode(images[:0]).shape == (0, 8, 8)
    made = codec.decode(codes)
    assert made.shape == images.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(codec.decode(codes[7:8])[0], made[7])


def test_eight_devices_give_the_same_codes(codec, params):
    images = pictures(19)
    spread = Codec(CONFIG, params, rows=16, mesh=make_mesh(MeshConfig()))
    np.testing.assert_array_equal(spread.encode(images), codec.encode(images))
    np.testing.assert_array_equal(spread.decode(codec.encode(images)), codec.decode(codec.encode(images)))


def test_other_parameters_need_no_new_program(codec, params):
    doubled = codec.with_params(jax.tree.map(lambda x: 2 * x, params))
    images = pictures(4)
    assert (doubled.encode(images) != codec.encode(images)).any()
    assert codec._encode._cache_size() == 1


def test_what_does_not_fit_is_refused(codec):
    for images in (pictures(1).astype(np.float32), pictures(1, side=15), pictures(1)[0]):
        with pytest.raises(ValueError, match="sides that are multiples of 2"):
            codec.encode(images)
    for code in (-1, 20):
        with pytest.raises(ValueError, match=f"found code {code}, expected 0 to 19"):
            codec.decode(np.full((1, 2, 2), code))


def test_the_file_holds_structure_and_weights(params, tmp_path):
    save_codec_file(tmp_path / CODEC_FILE, CONFIG, params)
    config, loaded, digest = load_codec_file(tmp_path / CODEC_FILE)
    assert config == CONFIG and digest == codec_digest(CONFIG, params)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), loaded, params))
    assert [path.name for path in tmp_path.iterdir()] == [CODEC_FILE]
    keep_codec_file(tmp_path, CONFIG, params)
    other = jax.tree.map(lambda x: x + 1, params)
    with pytest.raises(DataError, match="found another VQGAN"):
        keep_codec_file(tmp_path, CONFIG, other)
    keep_codec_file(tmp_path, CONFIG, other, rebuild=True)
    assert load_codec_file(tmp_path / CODEC_FILE)[2] == codec_digest(CONFIG, other) != digest


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / CODEC_FILE
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="found no file of a VQGAN"):
        load_codec_file(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DataError, match="found arrays a"):
        load_codec_file(path)
