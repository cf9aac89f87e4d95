"""Accuracy, captions and infilling: hand-computed cases and pycocoevalcap beside ours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from ofa_jax.config.errors import DataError
from ofa_jax.metrics.accuracy import accuracy
from ofa_jax.metrics.bleu4 import bleu4
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.code_accuracy import code_accuracy
from ofa_jax.metrics.document_frequencies import document_frequencies, read_frequencies, write_frequencies
from ofa_jax.metrics.exact_match import exact_match
from ofa_jax.metrics.masked_token_accuracy import masked_positions, masked_token_accuracy
from ofa_jax.metrics.rouge_l import rouge_l
from ofa_jax.metrics.vqa_accuracy import answer_weights, vqa_accuracy
from ofa_jax.metrics.words import normalise

HYPOTHESES = ["A red dog left of a cat.", "a tree", "", "two birds above the green house on a hill", "the cat the cat the cat"]
REFERENCES = [
    ["a red dog left of a cat"],
    ["a tall tree", "a tree on a hill"],
    ["a boat"],
    ["two birds above a green house on the hill", "birds over a house"],
    ["the cat sat on the mat"],
]


def test_accuracy_counts_equal_pairs():
    found = accuracy(["yes", "no", "yes", "no"], ["yes", "yes", "yes", "no"])
    assert found.value == 0.75
    assert found.scores.tolist() == [1, 0, 1, 1]


def test_vqa_accuracy_takes_the_weight_of_the_predicted_answer():
    found = vqa_accuracy(["red", "blue", "two"], [{"red": 1.0, "blue": 0.3}, {"red": 1.0, "blue": 0.3}, {"2": 1.0}])
    assert found.value == pytest.approx((1.0 + 0.3 + 0.0) / 3)


def test_answers_weigh_what_ofas_files_give_them():
    answers = ["red"] * 5 + ["Red"] * 2 + ["dark red"] + [""] * 2
    assert answer_weights(answers) == {"red": 1.0, "Red": 0.6, "dark red": 0.3, "": 0.6}
    assert answer_weights(["a"] * 3 + ["b"] * 4) == {"a": 0.9, "b": 1.0}
    assert answer_weights(()) == {}


def test_unequal_or_empty_lists_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="accuracy: found 1 predictions and 2 references"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="cider: found no examples"):
        cider([], [])


def test_exact_match_ignores_case_and_punctuation_only():
    assert exact_match(["A cat, sitting.", "a cat"], [["a cat sitting"], ["the cat", "cat"]]).scores.tolist() == [1, 0]


def test_words_keep_inner_apostrophes():
    assert normalise(" It's a \"red-hot\" dog, isn't it?") == "it's a red hot dog isn't it"


def test_cider_equals_pycocoevalcap():
    found = cider(HYPOTHESES, REFERENCES)
    gts = {i: [normalise(r) for r in refs] for i, refs in enumerate(REFERENCES)}
    value, scores = Cider().compute_score(gts, {i: [normalise(h)] for i, h in enumerate(HYPOTHESES)})
    assert found.value == pytest.approx(value)
    np.testing.assert_allclose(found.scores, scores)
    assert found.scores[0] == pytest.approx(10.0)  # a hypothesis equal to its only reference


def _random_captions(seed, count):
    """Captions of a few words that repeat and overlap, some empty; one to five references."""
    draw = np.random.default_rng(seed)

    def text():
        return " ".join(draw.choice(["a", "dog", "cat", "on", "the", "hill", "red", "it's"], draw.integers(0, 12)))

    return [text() for _ in range(count)], [[text() for _ in range(draw.integers(1, 6))] for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 1])
def test_cider_equals_pycocoevalcap_on_random_captions(seed):
    hypotheses, references = _random_captions(seed, 40)
    _, scores = Cider().compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    np.testing.assert_allclose(cider(hypotheses, references).scores, scores, rtol=1e-12, atol=1e-12)


def _cider_with_corpus(hypotheses, references, corpus):
    """pycocoevalcap's scores of a few examples with the document frequencies of a corpus that has more."""
    scorer = CiderScorer()
    for refs in corpus:
        scorer += (None, refs)
    scorer.compute_doc_freq()
    scorer.ctest, scorer.crefs = [], []
    for hypothesis, refs in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, refs)
    # The scorer takes the number of images from its list of references and stops at the end of the shorter list.
    scorer.crefs += [[]] * (len(corpus) - len(references))
    return scorer.compute_cider()


def test_cider_with_stored_frequencies_equals_pycocoevalcap(tmp_path):
    _, corpus = _random_captions(2, 60)
    hypotheses, references = _random_captions(3, 20)
    references[0].append("a purple dog")  # a word that the corpus lacks counts as in one image
    hypotheses[0] = "the purple dog"
    write_frequencies(tmp_path / "corpus.json", document_frequencies(corpus))
    stored = read_frequencies(tmp_path / "corpus.json")
    assert stored == document_frequencies(corpus)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.json"]
    found = cider(hypotheses, references, frequencies=stored)
    np.testing.assert_allclose(found.scores, _cider_with_corpus(hypotheses, references, corpus), rtol=1e-12, atol=1e-12)
    assert found.scores[0] > 0
    # One image alone, as self-critical training scores it, and the corpus of the examples themselves.
    assert cider(hypotheses[:1], references[:1], frequencies=stored).value == pytest.approx(found.scores[0], rel=1e-12)
    own = document_frequencies(references)
    np.testing.assert_array_equal(cider(hypotheses, references, frequencies=own).scores, cider(hypotheses, references).scores)
    assert not np.allclose(found.scores, cider(hypotheses, references).scores)


def test_document_frequencies_count_images_not_captions():
    found = document_frequencies([["A dog, a dog.", "the dog"], ["the dog ran"], ["a cat"]])
    assert found.ref_len == 3
    assert {g: found.document_frequency.get(g) for g in ("a", "dog", "the dog", "a dog a dog", "cat", "bird")} == {
        "a": 2, "dog": 2, "the dog": 2, "a dog a dog": 1, "cat": 1, "bird": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="document_frequencies: found no images"):
        document_frequencies([])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "corpus.json cannot be read"),
        ("{", "does not parse as JSON"),
        ("[1]", "found list, expected an object of ref_len and document_frequency"),
        ('{"ref_len": 3}', r"found \['ref_len'\], expected an object"),
        ('{"ref_len": 0, "document_frequency": {}}', "field ref_len: found '0', expected a number of images"),
        ('{"ref_len": 3, "document_frequency": []}', r"field document_frequency: found '\[\]', expected an object of counts"),
        ('{"ref_len": 3, "document_frequency": {"a": 2, "a dog": 4}}', r"document_frequency of 'a dog': found 4, expected 1 to ref_len"),
        ('{"ref_len": 3, "document_frequency": {"a": 1.5}}', "document_frequency of 'a': found 1.5"),
    ],
)
def test_frequencies_that_are_none_are_refused(tmp_path, text, fault):
    path = tmp_path / "corpus.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=fault):
        read_frequencies(path)


def test_rouge_by_hand():
    found = rouge_l(["the cat on mat", "a dog"], [["the cat sat on the mat", "mat"], ["bird"]])
    # LCS 4 of 4 words with the first reference, 1 of 1 with the second: precision and recall 1, of different references.
    assert found.scores.tolist() == [1.0, 0.0]
    alone = rouge_l(["the cat on mat"], [["the cat sat on the mat"]])
    assert alone.value == pytest.approx((1 + 1.44) * 1 * (4 / 6) / (4 / 6 + 1.44))
    with pytest.raises(ValueError, match="rouge_l: example 0: found no references"):
        rouge_l(["a"], [[]])


@pytest.mark.parametrize("seed", [0, 1])
def test_rouge_equals_pycocoevalcap(seed):
    hypotheses, references = _random_captions(seed, 60)
    hypotheses, references = HYPOTHESES + hypotheses, REFERENCES + references
    gts = {i: [normalise(r) for r in refs] for i, refs in enumerate(references)}
    value, scores = Rouge().compute_score(gts, {i: [normalise(h)] for i, h in enumerate(hypotheses)})
    found = rouge_l(hypotheses, references)
    assert found.value == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12)


def test_bleu_equals_pycocoevalcap_also_on_a_resample():
    found = bleu4(HYPOTHESES, REFERENCES)
    gts = {i: [normalise(r) for r in refs] for i, refs in enumerate(REFERENCES)}
    value, scores = Bleu(4).compute_score(gts, {i: [normalise(h)] for i, h in enumerate(HYPOTHESES)}, verbose=0)
    assert found.value == pytest.approx(value[3])
    np.testing.assert_allclose(found.scores, scores[3], atol=1e-12)
    counts = np.array([2.0, 0, 0, 3, 1])
    drawn = [0, 0, 3, 3, 3, 4]
    again, _ = Bleu(4).compute_score(
        {i: gts[j] for i, j in enumerate(drawn)}, {i: [normalise(HYPOTHESES[j])] for i, j in enumerate(drawn)}, verbose=0
    )
    assert found.resample(counts[None])[0] == pytest.approx(again[3])


def test_code_accuracy_is_over_positions():
    found = code_accuracy([[1, 2, 3, 4], [5, 5, 5, 5]], [[1, 2, 0, 0], [5, 5, 5, 0]])
    assert found.value == 5 / 8
    assert found.scores.tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match="example 0: found 1 codes, expected 2"):
        code_accuracy([[1]], [[1, 2]])


def test_masked_positions_of_a_hand_made_noise():
    m = 99
    assert masked_positions([1, m, 4, m], [1, 2, 3, 4, 5], mask_id=m).tolist() == [False, True, True, False, True]
    assert masked_positions([1, m, 2], [1, 2], mask_id=m).tolist() == [False, False]  # an inserted mask hides nothing
    assert masked_positions([m], [7, 8], mask_id=m).tolist() == [True, True]
    assert masked_positions([1, 2], [1, 2], mask_id=m).tolist() == [False, False]
    assert masked_positions([1, 3, m], [1, 2], mask_id=m) is None
    assert masked_positions([2, m, 1], [1, 2], mask_id=m) is None
    assert masked_positions([1, m, 5, m, 2], [1, 2], mask_id=m) is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_masked_positions_hide_as_many_tokens_as_were_hidden(original, data):
    hidden = data.draw(st.lists(st.booleans(), min_size=len(original), max_size=len(original)))
    noised = []
    for i, (token, hide) in enumerate(zip(original, hidden, strict=True)):
        if not hide:
            noised.append(token)
        elif i == 0 or not hidden[i - 1]:
            noised.append(99)
    found = masked_positions(noised, original, mask_id=99)
    assert found is not None
    assert found.sum() == sum(hidden)
    assert [t for t, h in zip(original, found, strict=True) if not h] == [t for t in noised if t != 99]


def test_masked_token_accuracy_counts_hidden_tokens_only():
    found = masked_token_accuracy([[1, 2, 3], [4, 5]], [[1, 0, 3], [0, 5]], [[False, True, True], [True, False]])
    assert found.value == 1 / 3
    assert found.scores.tolist() == [0.5, 0.0]
