"""ROUGE of summaries beside the rouge-score package, the stemmer beside NLTK's, and the form of Gigaword's texts."""

import pydoc_data.topics
import re

import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from ofa_jax.metrics.gigaword_words import gigaword_form
from ofa_jax.metrics.porter import stem
from ofa_jax.metrics.summary_rouge import summary_rouge

ENGLISH = " ".join(pydoc_data.topics.topics.values())  # Python's own reference: 3,000 different words and more
SUFFIXES = re.findall(
    r"\w+",
    """ies ied eed ed ing y ly s ss sses alli logi e ll ion ational tional enci anci izer abli bli entli eli ousli ization ation ator alism
    iveness fulness ousness aliti iviti biliti fulli icate ative alize iciti ical ful ness al ance ence er ic able ible ant ement ment
    ent ou ism ate iti ous ive ize at bl iz""",
)


def _made_words(count):
    """Words of a few letters and up to three suffixes, in which every rule meets every other."""
    draw = np.random.default_rng(0)
    letters = list("aeiouybcdlstwxz1")
    for _ in range(count):
        yield "".join([*draw.choice(letters, draw.integers(0, 6)), *draw.choice(SUFFIXES, draw.integers(0, 4))])


def test_stems_are_nltks():
    reference = PorterStemmer()
    words = {*re.findall(r"[a-z0-9]+", ENGLISH.lower()), *_made_words(30_000), "sky", "skies", "dying", "news", "innings", "howe"}
    assert len(words) > 20_000
    assert {word: stem(word) for word in words} == {word: reference.stem(word) for word in words}


def test_stems_by_the_paper():
    """Examples of Porter's article for every step, where NLTK keeps them."""
    expected = {
        "caresses": "caress", "ponies": "poni", "cats": "cat", "agreed": "agre", "plastered": "plaster", "motoring": "motor",
        "hopping": "hop", "falling": "fall", "filing": "file", "happy": "happi", "relational": "relat", "digitizer": "digit",
        "hopefulness": "hope",
        "electrical": "electr", "replacement": "replac", "adoption": "adopt", "probate": "probat", "controll": "control", "roll": "roll",
    }  # fmt: skip
    assert {word: stem(word) for word in expected} == expected


def _pairs(seed, count):
    """Predictions that share words with their references: cut, mixed and spoiled sentences of English; some empty."""
    draw = np.random.default_rng(seed)
    sentences = [s for s in re.split(r"[.\n]{2,}", ENGLISH) if 3 < len(s.split()) < 60]
    predictions, references = [], []
    for _ in range(count):
        words = sentences[draw.integers(len(sentences))].split()
        kept = np.array([w for w in words if draw.random() < 0.7] or ["none"])
        mixed = draw.integers(len(kept) + 1)
        kept[:mixed] = draw.permutation(kept[:mixed])
        predictions.append(" ".join([*kept, "Ünï-code's", "``"][: draw.integers(len(kept) + 3)]))
        others = [" ".join(words[: draw.integers(len(words) + 1)]) for _ in range(draw.integers(0, 3))]
        references.append([" ".join(words), *others])
    return predictions, references


@pytest.mark.parametrize(("kind", "name"), [("1", "rouge1"), ("2", "rouge2"), ("l", "rougeL")])
def test_rouge_equals_rouge_score(kind, name):
    predictions, references = _pairs(0, 150)
    predictions += ["", "a", "the cats were running", "!!!", "one word"]
    references += [["a"], [""], ["The cat runs"], ["!"], ["one word"]]
    scorer = RougeScorer([name], use_stemmer=True)
    expected = [scorer.score_multi(refs, text)[name].fmeasure for text, refs in zip(predictions, references, strict=True)]
    found = summary_rouge(predictions, references, kind=kind)
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-15)
    assert found.value == pytest.approx(np.mean(expected), abs=1e-15)
    assert 0.1 < found.value < 0.9


def test_rouge_by_hand():
    # Stems: the cat were run | the cat run: 3 words, 1 pair and a subsequence of 3 are common.
    found, true = ["the cats were running"], [["The cat runs"]]
    assert summary_rouge(found, true, kind="1").value == summary_rouge(found, true, kind="l").value == 6 / 7
    assert summary_rouge(found, true, kind="2").value == 2 / 5
    with pytest.raises(ValueError, match="found kind '3', expected one of 1, 2, l"):
        summary_rouge(found, true, kind="3")
    with pytest.raises(ValueError, match="summary_rouge: example 0: found no references"):
        summary_rouge(["a"], [[]], kind="1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He said ( or so [ they ] say )", "he said -lrb- or so -lsb- they -rsb- say -rrb-"),
        ("{ a & b } < c >", "-lcb- a &amp; b -rcb- &lt; c &gt;"),
        ('" yes , " he said , " no "', "`` yes , '' he said , `` no ''"),
        ("' yes ' and ' no '", "` yes ' and ` no '"),
        ("he don ' t know it ' s paul ' s , we ' ll see , she ' d go", "he do n't know it 's paul 's , we 'll see , she 'd go"),
        ("can ' t", "ca n't"),
        ("wait . . . and see . .", "wait ... and see . ."),
        ("$ 3 , 000 , 000 or 3 . 05 , 5", "$ 3,000,000 or 3.05 , 5"),  # 3.05 is no whole number, so the comma stays
        ("a year - old - style plan - - or - - not -", "a year-old-style plan -- or -- not -"),
        ("- first ; - then ` ` - x", "- first ; - then ` ` - x"),
        ("a ( - b", "a -lrb--b"),  # the bracket's name is no sign any more
        ("a - ( b", "a - -lrb- b"),
        ("U . N . says", "u . n . says"),  # the rule for it knows capitals only
        ("<unk> wins 11 of 21", " unk wins ## of 2#"),
        ("  two   spaces ", "two spaces"),
        ("", ""),
    ],
)
def test_form_of_gigaword(text, expected):
    """Written down from OFA's own function of tokens, which gave the same for these and for 400,000 random rows of tokens."""
    assert gigaword_form(text) == expected
