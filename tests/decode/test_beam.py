"""Beam search on a toy model whose logits depend on every token before, against the plain search on lists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.decode import beam
from ofa_jax.decode.beam import search
from ofa_jax.decode.constraints import IdRange, Members
from ofa_jax.decode.rules import DecodeConfig, Rules
from ofa_jax.vocab.trie import build_trie
from tests.decode import plain_search
from tests.decode.plain_search import BOS, EOS, PAD, UNK

NUM, SIZE, MEMORY = 5, 13, 61


def walk(memory, token):
    return (memory * 7 + token + 1) % MEMORY


class Toy:
    """Logits are a row of a random table; the row is a hash of the sentence's tokens so far, kept where a model keeps its cache."""

    def __init__(self, seed: int, *, end: float = 1.0):
        self.table = np.random.default_rng(seed).normal(size=(NUM, MEMORY, SIZE), scale=1.5).astype(np.float32)
        self.table[..., EOS] += end

    def start(self, beams):
        return jnp.zeros((NUM, beams), jnp.int32)

    def next_logits(self, memory, parents, ids, place):
        memory = walk(jnp.take_along_axis(memory, parents, 1), ids)
        return jnp.asarray(self.table)[jnp.arange(NUM)[:, None], memory], memory

    def logits_of(self, q):
        def logits(row):
            memory = 0
            for token in row:
                memory = walk(memory, token)
            return self.table[q, memory]

        return logits


def run(toy, config, prefix_ids=None, constraint=None):
    def decode(constraint, prefix_ids):
        return search(toy.next_logits, toy.start(config.beam), Rules(config, constraint, prefix_ids, num=NUM), num=NUM)

    return jax.device_get(jax.jit(decode)(constraint, prefix_ids))


def agrees(found, q, expected):
    """One sentence's hypotheses against [(tokens, score)]."""
    lengths = [len(tokens) for tokens, _ in expected]
    lengths += [0] * (found.lengths.shape[1] - len(expected))
    assert found.lengths[q].tolist() == lengths
    for k, (tokens, score) in enumerate(expected):
        assert found.sequences[q, k].tolist() == tokens + [PAD] * (found.sequences.shape[2] - len(tokens))
        np.testing.assert_allclose(found.scores[q, k], score, atol=1e-4)
    assert (found.sequences[q, len(expected) :] == PAD).all() and (found.scores[q, len(expected) :] == -np.inf).all()


def draw_settings(seed):
    """A random config, prefixes of unequal lengths or none, a set of members or none, a range or none."""
    draw = np.random.default_rng(seed)
    max_len = int(draw.integers(3, 8))
    config = DecodeConfig(
        beam=int(draw.integers(1, 6)),
        max_len=max_len,
        min_len=int(draw.integers(0, 4)),
        lenpen=float(draw.choice([0.0, 0.7, 1.0, 1.5])),
        unk_penalty=float(draw.choice([0.0, 2.0])),
        temperature=float(draw.choice([0.6, 1.0, 1.7])),
        no_repeat_ngram=int(draw.integers(0, 4)),
        normalise=bool(draw.random() < 0.7),
        fixed_length=bool(draw.random() < 0.2),
        zero_shot=bool(draw.random() < 0.3),
        ignore_eos=bool(draw.random() < 0.2),
    )
    prefixes, members, id_range = [()] * NUM, None, None
    if draw.random() < 0.6:
        prefixes = [tuple(draw.integers(UNK, SIZE, length).tolist()) for length in draw.integers(0, 4, NUM)]
    kind = seed % 3
    if kind == 1:
        members = [tuple(draw.integers(UNK, SIZE, length).tolist()) for length in draw.integers(1, max_len, 25)]
    elif kind == 2:
        id_range = (6, 11)
    return config, prefixes, members, id_range


def pad_rows(rows):
    width = max(map(len, rows))
    return np.array([[*row, *[PAD] * (width - len(row))] for row in rows], np.int32).reshape(len(rows), width) if width else None


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[] if seed < 12 else [pytest.mark.full]) for seed in range(30)])
def test_equals_the_plain_search(seed):
    config, prefixes, members, id_range = draw_settings(seed)
    constraint = Members.of(build_trie(members)) if members else IdRange(*id_range) if id_range else None
    toy = Toy(seed)
    found = run(toy, config, pad_rows(prefixes), constraint)
    assert found.sequences.dtype == found.lengths.dtype == np.int32 and found.scores.dtype == np.float32
    assert found.sequences.shape == (NUM, config.beam, config.max_len + 1)
    for q, prefix in enumerate(prefixes):
        expected = plain_search.beam_search(
            toy.logits_of(q), config, prefix=prefix, width=max(map(len, prefixes)), id_range=id_range, members=members
        )
        agrees(found, q, expected)


def test_only_members_are_written_whole():
    members = [(5,), (5, 6), (7, 8, 9), (3, 3, 3, 3)]
    found = run(Toy(1), DecodeConfig(beam=6, max_len=4), constraint=Members.of(build_trie(members)))
    for q in range(NUM):
        written = [tuple(found.sequences[q, k, : found.lengths[q, k] - 1].tolist()) for k in range(6) if found.lengths[q, k]]
        assert len(written) == 4 and set(written) == set(members), "a beam wider than the set holds each member once"


def last_place(toy, config, constraint=None):
    """The place at which the search stopped, and its result."""
    places = []

    def next_logits(memory, parents, ids, place):
        jax.debug.callback(lambda place: places.append(int(place)), place)
        return toy.next_logits(memory, parents, ids, place)

    rules = Rules(config, constraint, None, num=NUM)
    out = jax.device_get(jax.jit(lambda: search(next_logits, toy.start(config.beam), rules, num=NUM))())
    jax.effects_barrier()
    return max(places), out


def test_the_loop_ends_with_the_sentences():
    place, out = last_place(Toy(2, end=30.0), DecodeConfig(beam=2, max_len=50))
    assert place == out.lengths.max() - 1 < 5 and (out.lengths > 0).all()


def test_the_loop_ends_when_nothing_can_follow():
    place, out = last_place(Toy(2), DecodeConfig(beam=3, max_len=50), Members.of(build_trie([[5, 6], [7]])))
    assert place == 2 and (out.lengths > 0).sum(1).tolist() == [2] * NUM


def test_a_sentence_of_nan_ends_nowhere_and_harms_no_other():
    toy, broken = Toy(3), Toy(3)
    broken.table[1] = np.nan
    config = DecodeConfig(beam=3, max_len=6)
    expected, found = run(toy, config), run(broken, config)
    assert (found.lengths[1] == 0).all() and (found.scores[1] == -np.inf).all() and (found.sequences[1] == PAD).all()
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(found.sequences[others], expected.sequences[others])


def test_no_minimal_length_holds_before_the_longest_prefix_ends():
    """OFA's oddity: beside a longer prefix a shorter one may be followed by EOS before `min_len`."""
    toy = Toy(4, end=30.0)
    config = DecodeConfig(beam=1, max_len=6, min_len=3)
    alone = run(toy, config, np.full((NUM, 1), 5, np.int32))
    beside = np.full((NUM, 3), 5, np.int32)
    beside[0, 1:] = PAD
    assert alone.sequences[0, 0, :4].tolist().index(EOS) == 3
    assert run(toy, config, beside).sequences[0, 0].tolist() == [5, EOS] + [PAD] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 0}, "beam: found 0"),
        ({"max_len": 3, "min_len": 4}, "min_len: found 4, expected 0 to max_len = 3"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram: found -1"),
    ],
)
def test_settings_that_cannot_run_name_the_field(options, words):
    with pytest.raises(ValueError, match=words):
        DecodeConfig(**options)


def test_arguments_that_do_not_fit():
    config = DecodeConfig(max_len=4)
    with pytest.raises(ValueError, match=r"prefix_ids: found shape \(3, 2\), expected \[5, at most max_len = 4\]"):
        Rules(config, None, np.zeros((3, 2), np.int32), num=NUM)
    with pytest.raises(ValueError, match=r"prefix_ids: found shape \(5, 5\)"):
        Rules(config, None, np.zeros((5, 5), np.int32), num=NUM)
    with pytest.raises(TypeError, match="constraint: found tuple, expected one IdRange or Members; they exclude each other"):
        Rules(config, (IdRange(4, 6), Members.of(build_trie([[5]]))), None, num=NUM)
    with pytest.raises(ValueError, match="constraint range: found 3 to 9, expected 4 <= start < stop"):
        IdRange(3, 9)


def test_one_step_by_hand():
    """Two tokens and EOS: the scores of a search one can do in the head."""
    probs = np.zeros(6)
    probs[[EOS, 4, 5]] = 0.2, 0.5, 0.3

    def next_logits(state, parents, ids, place):
        return jnp.broadcast_to(jnp.log(jnp.asarray(probs, jnp.float32)), (1, 2, 6)), state

    out = search(next_logits, (), Rules(DecodeConfig(beam=2, max_len=2, min_len=0), None, None, num=1), num=1)
    # Place 0 keeps 4 and 5 (EOS is third). Place 1: 44 .25, 45 .15, 54 .15, 4-EOS .1; none ends. Place 2: EOS is forced.
    assert out.sequences.tolist() == [[[4, 4, EOS], [4, 5, EOS]]]
    np.testing.assert_allclose(out.scores, [np.log([0.05, 0.03]) / 3], rtol=1e-5)


def test_bos_is_the_first_token_of_the_ngrams():
    toy = Toy(6, end=-30.0)
    toy.table[..., BOS] += 30.0
    found = run(toy, DecodeConfig(beam=2, max_len=4, no_repeat_ngram=1))
    assert not (found.sequences == BOS).any()


@pytest.mark.parametrize("size", [7, 639, 640, 641, 5_003])
def test_the_best_are_found_by_blocks_as_all_at_once(size):
    """With many equal elements and impossible ones, in the same order."""
    draw = np.random.default_rng(size)
    x = draw.integers(-4, 5, (6, size)).astype(np.float32)
    x[draw.random(x.shape) < 0.3] = -np.inf
    x[1] = -np.inf
    x[2] = draw.normal(size=size)
    k = min(10, size)
    for found, expected in zip(jax.jit(beam._top_k, static_argnums=1)(x, k), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(found, expected)
