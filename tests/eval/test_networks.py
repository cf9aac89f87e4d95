"""A user's networks from their files: batches in order, real functions of NumPy and JAX, and answers that are none."""

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.eval.networks import Network
from ofa_jax.metrics.clip_score import best_of
from ofa_jax.metrics.fid import fid
from ofa_jax.metrics.inception_score import inception_score

NETWORKS = '''
"""What a user would write, small."""
import jax
import jax.numpy as jnp
import numpy as np

BATCHES = []
WEIGHTS = np.random.default_rng(0).normal(size=(3 * 4, 10)).astype(np.float32)


def features(pictures):
    BATCHES.append(pictures.shape)
    corners = pictures[:, ::4, ::4][:, :2, :2].reshape(len(pictures), -1)
    return corners / 255.0 @ WEIGHTS


@jax.jit
def probabilities(pictures):
    return jax.nn.softmax(features(jnp.asarray(pictures)).astype(jnp.float32))


@jax.jit
def half(pictures):
    return features(jnp.asarray(pictures)).astype(jnp.bfloat16)


def words(texts):
    assert isinstance(texts, list)
    return np.array([[len(t), t.count("a") + 1.0] for t in texts])


def narrow(pictures):
    return features(pictures)[:, : len(pictures)]


def flat(pictures):
    return features(pictures).sum(1)


def short(pictures):
    return features(pictures)[1:]


def whole(pictures):
    return features(pictures).astype(int)


def ragged(pictures):
    return [[0.0] * i for i in range(len(pictures))]


def broken(pictures):
    found = features(pictures)
    found[pictures[:, 0, 0, 0] == 255] = np.nan
    return found


number = 3
'''


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    file = tmp_path_factory.mktemp("networks") / "networks.py"
    file.write_text(NETWORKS)
    return lambda name: Network.load(f"{file}:{name}", flag="features")


def _pictures(seed, n):
    return np.random.default_rng(seed).integers(0, 255, (n, 8, 8, 3)).astype(np.uint8)


def test_pictures_go_in_batches_and_come_back_in_order(load):
    network, pictures = load("features"), _pictures(0, 10)
    batches = network.function.__globals__["BATCHES"]
    batches.clear()
    found = network.of_pictures(pictures, width=10, batch_size=4)
    assert batches == [(4, 8, 8, 3), (4, 8, 8, 3), (2, 8, 8, 3)]
    assert found.dtype == np.float32 and found.shape == (10, 10)
    np.testing.assert_allclose(found, network.function(pictures), rtol=1e-6)
    # One by one from a generator, and all at once.
    np.testing.assert_array_equal(network.of_pictures((p for p in pictures), batch_size=4), found)
    np.testing.assert_allclose(network.of_pictures(list(pictures)), found, rtol=1e-6)
    assert load("features") is network and len(network.digest()) == 64


def test_networks_of_jax_and_what_is_made_of_them(load):
    pictures = _pictures(1, 30)
    rows = load("probabilities").of_pictures(pictures, width=10, batch_size=15)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)
    assert 1 < inception_score(rows).value < 10
    features, half = load("features").of_pictures(pictures), load("half").of_pictures(pictures)
    np.testing.assert_allclose(half, features, rtol=1e-2, atol=1e-2)
    near, far = load("features").of_pictures(pictures[:, ::-1]), load("features").of_pictures(pictures // 4)
    assert fid(features, features) < 1e-4 < fid(near, features) < fid(far, features)


def test_texts_go_as_lists(load):
    texts = ["a cat", "banana", "", "x"]
    found = load("words").of_texts(texts, width=2, batch_size=3)
    assert found.tolist() == [[5, 3], [6, 4], [0, 1], [1, 1]]
    assert best_of(np.stack([found[::-1], found], axis=1), found).tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="expected a list of str"):
        load("words").of_texts("a cat")
    with pytest.raises(DataError, match="networks.py:words: found nothing to judge"):
        load("words").of_texts([])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("narrow", r"found \[1, 1\] for 1 of them, expected \[1, 3\]"),  # the last batch, of another width
        ("flat", r"found \[3\] for 3 of them, expected \[3, width\]"),
        ("short", r"found \[2, 10\] for 3 of them, expected \[3, width\]"),
        ("whole", "found numbers of type int64, expected floating point"),
        ("ragged", "found list, expected an array"),
        ("broken", "number 4: found a value that is not finite, expected numbers"),
    ],
)
def test_an_answer_that_is_none_is_one_sentence(load, name, fault):
    pictures = _pictures(2, 7)
    pictures[4, 0, 0, 0] = 255
    with pytest.raises(ConfigError, match=f"network .*networks.py:{name}: {fault}") as caught:
        load(name).of_pictures(pictures, batch_size=3)
    assert "\n" not in str(caught.value)


def test_the_expected_width_holds_for_the_first_batch(load):
    with pytest.raises(ConfigError, match=r"found \[7, 10\] for 7 of them, expected \[7, 2048\]"):
        load("features").of_pictures(_pictures(2, 7), width=2048)


@pytest.mark.parametrize(
    ("pictures", "fault"),
    [
        (np.zeros((2, 8, 8, 3)), r"picture 0: found float64 \[8, 8, 3\], expected uint8 \[height, width, 3\]"),
        (np.zeros((2, 8, 8), np.uint8), r"picture 0: found uint8 \[8, 8\], expected uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"picture 0: found uint8 \[8, 8, 4\]"),
        (
            [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)],
            r"picture 1: found \[9, 8, 3\] after \[8, 8, 3\], expected one size",
        ),
        ([], "networks.py:features: found nothing to judge"),
    ],
)
def test_pictures_that_are_none_are_refused(load, pictures, fault):
    with pytest.raises(DataError, match=fault):
        load("features").of_pictures(pictures)


def test_a_function_that_is_none_is_refused(load, tmp_path):
    with pytest.raises(ConfigError, match="features: .*networks.py: found no function number"):
        load("number")
    with pytest.raises(ConfigError, match="features: found no file"):
        Network.load(f"{tmp_path}/other.py:f", flag="features")
    with pytest.raises(ConfigError, match="features: found 'other.py', expected FILE.py:function"):
        Network.load("other.py", flag="features")
