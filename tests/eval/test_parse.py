"""Reading ids back, whatever a model says."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.schema import EOS_ID, PAD_ID
from ofa_jax.data.records import Box
from ofa_jax.eval.collect import choose
from ofa_jax.eval.parse import read_box, read_objects, to_picture, until_eos


def _bins(vocab, *bins):
    return [vocab.first_bin_id + b for b in bins]


def test_until_eos():
    assert until_eos(np.array([5, 6, EOS_ID, 7])) == [5, 6]
    assert until_eos([5, PAD_ID, 6]) == [5, 6]
    assert until_eos([EOS_ID]) == []


def test_boxes(vocab):
    assert read_box(_bins(vocab, 0, 8, 16, 32), vocab=vocab) == Box(0.0, 8.0, 16.0, 32.0)
    assert read_box([*_bins(vocab, 0, 8, 16, 32), 9], vocab=vocab) == Box(0.0, 8.0, 16.0, 32.0)
    assert read_box(_bins(vocab, 0, 8, 16), vocab=vocab) is None
    assert read_box([*_bins(vocab, 0, 8), 9, *_bins(vocab, 1)], vocab=vocab) is None
    assert read_box([], vocab=vocab) is None
    assert to_picture(Box(0, 8, 16, 32), image_px=32, width=64, height=16) == Box(0, 4, 32, 16)


def test_objects(vocab, tokenizer):
    cat, dog = tokenizer.encode(" cat"), tokenizer.encode(" dog")

    def read(*parts):
        return read_objects([i for part in parts for i in part], vocab=vocab, tokenizer=tokenizer)

    box = _bins(vocab, 0, 0, 4, 4)
    assert read() == ([], 0)
    assert read(box, cat, box, dog) == ([("cat", Box(0, 0, 4, 4)), ("dog", Box(0, 0, 4, 4))], 0)
    assert read(box, cat, box) == ([("cat", Box(0, 0, 4, 4))], 1)  # cut off before the label
    assert read(cat, box, dog) == ([("dog", Box(0, 0, 4, 4))], 1)  # a label without a box
    assert read(box, box, cat) == ([], 1)  # eight bins in a row
    assert read(box[:3], cat, box, dog) == ([("dog", Box(0, 0, 4, 4))], 1)
    assert read(box, [vocab.first_code_id], box, dog) == ([("dog", Box(0, 0, 4, 4))], 1)  # an image code is no label
    assert read(box, [vocab.mask_id]) == ([], 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_are_read_without_an_exception(vocab, tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, vocab.size - 1), max_size=40))
    objects, malformed = read_objects(until_eos(ids), vocab=vocab, tokenizer=tokenizer)
    assert malformed >= 0
    assert all(label and len(box) == 4 for label, box in objects)
    read_box(ids, vocab=vocab)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 60))
def test_examples_are_spread_over_records(counts, limit):
    chosen = choose(counts, limit=limit, name="x")
    total = sum(counts)
    assert len(chosen) == (total if not limit else min(limit, total))
    assert len(set(chosen)) == len(chosen)
    assert chosen == sorted(chosen)
    assert all(i < counts[r] for r, i in chosen)
    if limit and limit <= sum(c > 0 for c in counts):
        assert len({r for r, _ in chosen}) == len(chosen)
