"""Codes to pictures and back: which codec a data folder has, codes that are none, and reconstructions of a VQGAN's run."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VQGANConfig
from ofa_jax.eval.codec import PatchCodec, VqganCodec, load_codec, picture_of
from ofa_jax.eval.reconstructions import reconstruct, sheet
from ofa_jax.metrics.psnr import psnr
from ofa_jax.models import vqgan
from ofa_jax.models.vqgan_codec import CODEC_FILE, save_codec_file

CONFIG = VQGANConfig(
    width=8, multiples=(1, 2), num_blocks=1, attention_levels=(), latent_width=4, num_codes=20, code_width=4, norm_groups=4
)
CENTERS = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 2, 2, 3), 50, np.uint8)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with a VQGAN and a patch codebook."""
    folder = tmp_path_factory.mktemp("codecs")
    np.savez(folder / "codebook.npz", centers=CENTERS)
    save_codec_file(folder / CODEC_FILE, CONFIG, jax.jit(lambda key: vqgan.create(CONFIG, key)[1])(jax.random.key(0)))
    return folder


def test_the_vqgan_of_a_folder_goes_before_its_patches(both, tmp_path):
    assert isinstance(load_codec(both), VqganCodec)
    np.savez(tmp_path / "codebook.npz", centers=CENTERS)
    assert isinstance(load_codec(tmp_path), PatchCodec)
    assert load_codec(tmp_path / "empty") is None


def test_a_missing_code_is_grey_and_an_unknown_one_is_refused(both):
    for codec in (PatchCodec(CENTERS), load_codec(both)):
        picture = picture_of(np.array([1, -1, 2, 4]), codec)
        assert picture.shape == (4, 4, 3) and (picture[:2, 2:] == 128).all()
        np.testing.assert_array_equal(picture[2:], codec.decode(np.array([[[1, 0], [2, 4]]]))[0, 2:])
        with pytest.raises(DataError, match=f"found code {codec.num_codes}, expected 0 to {codec.num_codes - 1}"):
            picture_of(np.array([codec.num_codes] * 4), codec)


def test_reconstructions_are_counted_and_drawn(both):
    codec = load_codec(both)._codec
    pictures = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    numbers, made = reconstruct(codec, pictures)
    codes = codec.encode(pictures)
    assert numbers["psnr"] == pytest.approx(psnr(made, pictures).mean())
    assert numbers["codes_used"] == len(np.unique(codes)) / 20
    assert 1 <= numbers["perplexity"] <= len(np.unique(codes)) + 1e-9
    drawn = sheet(pictures[:3], made[:3])
    assert drawn.shape == (2 * 256, 3 * 256, 3) and (drawn[0, 0] == pictures[0, 0, 0]).all()
