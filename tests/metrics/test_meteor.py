"""METEOR: a conversation that was recorded with METEOR 1.5, its faults, and in the full tier the program itself (which needs Java)."""

import json
import sys

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.meteor import JAR_VARIABLE, find_jar, meteor
from ofa_jax.metrics.words import normalise

# Text, references, what METEOR 1.5 (that of pycocoevalcap 1.2, OpenJDK 17) said of them: 23 counts, the score.
RECORDED = [
    ("A red dog left of a cat.", ["a red dog left of a cat"], "7 7 3 3 4 4 3 3 0 0 0 0 0 0 0 0 0 0 0 0 1 7 7", 1.0),
    ("a tree", ["a tall tree", "a tree on a hill"], "2 3 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 2 2 2", 0.2442748091603053),
    (
        "two birds above the green house on a hill",
        ["two birds above a green house on the hill", "birds over a house"],
        "9 9 4 4 5 5 4 4 0 0 0 0 0 0 0 0 0 0 0 0 5 9 9",
        0.4665462783206801,
    ),
    ("the dogs ran", ["the dog runs"], "3 3 1 1 0 0 1 1 1 1 0 0 1 1 0 0 0 0 0 0 1 3 3", 0.7428571428571429),
    ("", ["a boat"], "0 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", 0.0),
    (
        "a person rides a bike along the road",
        ["a man riding a bicycle down the street"],
        "8 8 3 3 0 0 3 3 1 1 0 0 1 1 0 0 2 2 0 0 2 7 7",
        0.31978660504157863,
    ),
]
TOGETHER = 0.40869707071552613
TEXTS, REFERENCES = [r[0] for r in RECORDED], [r[1] for r in RECORDED]

# Stands in for Java: its "jar" holds the answers as JSON, {line: [answer, ...]}; "*" is for all other lines, null for silence.
STAND_IN = f"""#!{sys.executable}
import json, sys, time
assert sys.argv[1:3] == ["-Xmx2G", "-jar"] and sys.argv[4:] == ["-", "-", "-stdio", "-l", "en", "-norm"], sys.argv
answers = json.load(open(sys.argv[3]))
for line in sys.stdin:
    said = answers.get(line.rstrip("\\n"), answers.get("*", []))
    if said is None:
        time.sleep(600)
    if not said:
        sys.exit("Exception: no answer to " + line)
    print("\\n".join(said), flush=True)
"""


def _answers():
    counts = [" ".join(f"{float(c)}" for c in row.split()) for _, _, row, _ in RECORDED]
    answers = {
        " ||| ".join(["SCORE", *map(normalise, refs), normalise(text)]): [row]
        for (text, refs, _, _), row in zip(RECORDED, counts, strict=True)
    }
    return answers | {" ||| ".join(["EVAL", *counts]): [repr(score) for *_, score in RECORDED] + [repr(TOGETHER)]}


@pytest.fixture
def ask(tmp_path):
    """Runs METEOR with the stand-in for Java, which gives these answers."""
    java = tmp_path / "java"
    java.write_text(STAND_IN)
    java.chmod(0o755)

    def run(answers, texts=TEXTS, references=REFERENCES, **options):
        (tmp_path / "meteor-1.5.jar").write_text(json.dumps(answers))
        return meteor(texts, references, jar=tmp_path / "meteor-1.5.jar", java=str(java), **options)

    return run


def test_a_recorded_conversation(ask):
    found = ask(_answers())
    assert found.value == TOGETHER
    assert found.scores.tolist() == [score for *_, score in RECORDED]
    assert found.resample(np.ones((1, 6)))[0] == pytest.approx(TOGETHER, abs=1e-15)
    # Drawn alone, an example scores what the program gives it, however often.
    np.testing.assert_allclose(found.resample(np.eye(6) * 3), found.scores, rtol=0, atol=1e-15)
    low, high = interval_95(found, num_samples=200)
    assert 0 < low < TOGETHER < high <= 1


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (
            {"*": ["Error: specify SCORE"]},
            r"found 'Error: specify SCORE' from .*meteor-1.5.jar, expected numbers for 'SCORE \|\|\| a red dog",
        ),
        ({"*": [""]}, "found '' from .*, expected numbers"),
        ({"*": ["1.0 2.0"]}, "found 2 counts from .*, expected the 23 of METEOR 1.5"),
        ({}, "ended with 1 within 600 s and wrote Exception: no answer to SCORE"),
        (_answers() | {"*": None}, "ended with -9 within 1 s and wrote no error, expected numbers for 'SCORE"),
    ],
)
def test_a_program_that_does_not_answer_is_one_sentence(ask, answers, fault):
    silent = answers.get("*", "") is None
    with pytest.raises(ConfigError, match=fault) as caught:
        ask(answers, ["a cat"] if silent else TEXTS, [["a cat"]] if silent else REFERENCES, timeout_s=1 if silent else 600)
    assert str(caught.value).startswith("metric meteor: ") and "\n" not in str(caught.value)


def test_another_version_of_the_program_is_told(ask):
    """Its scores are other ones than the formula gives that intervals are computed by."""
    answers = {line: [repr(float(a) * 0.9) for a in said] if line.startswith("EVAL") else said for line, said in _answers().items()}
    with pytest.raises(ConfigError, match="found a score of 0.900000 from .* where the formula of METEOR 1.5 gives 1.000000"):
        ask(answers)


def test_without_java_or_the_jar_there_is_no_other_number(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="metric meteor: found no program no-java, expected a Java runtime on the path"):
        meteor(["a"], [["a"]], java="no-java")
    with pytest.raises(ConfigError, match="metric meteor: found no file .*other.jar, expected meteor-1.5.jar"):
        meteor(["a"], [["a"]], jar=tmp_path / "other.jar")
    monkeypatch.setenv(JAR_VARIABLE, str(tmp_path / "named.jar"))
    with pytest.raises(ConfigError, match=r"found no file .*named.jar, expected meteor-1.5.jar \(OFA_METEOR_JAR names it\)"):
        meteor(["a"], [["a"]])
    (tmp_path / "named.jar").touch()
    assert find_jar() == tmp_path / "named.jar"
    monkeypatch.delenv(JAR_VARIABLE)
    assert find_jar().parts[-3:] == ("pycocoevalcap", "meteor", "meteor-1.5.jar")
    with pytest.raises(ValueError, match="meteor: example 0: found no references"):
        meteor(["a"], [[]])


@pytest.mark.full
def test_the_program_itself():
    """Needs Java. The recorded scores, pycocoevalcap's around the same jar, and resamples scored by the program as texts of their own."""
    from pycocoevalcap.meteor.meteor import Meteor

    words = "a the dog dogs cat bicycle bike big large on in is are running runs run man person woman street road house quickly of and sits"
    draw = np.random.default_rng(0)
    made = [[" ".join(draw.choice(words.split(), draw.integers(k, 9))) for _ in range(150)] for k in (0, 1, 1)]
    texts, references = TEXTS + made[0], REFERENCES + [list(refs) for refs in zip(*made[1:], strict=True)]
    found = meteor(texts, references)
    np.testing.assert_allclose(found.scores[:6], [score for *_, score in RECORDED], rtol=0, atol=1e-12)
    assert meteor(TEXTS, REFERENCES).value == pytest.approx(TOGETHER, abs=1e-12)
    gts = {i: [normalise(ref) for ref in refs] for i, refs in enumerate(references)}
    value, scores = Meteor().compute_score(gts, {i: [normalise(text)] for i, text in enumerate(texts)})
    assert found.value == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-12)
    counts = draw.multinomial(len(texts), np.full(len(texts), 1 / len(texts)))
    chosen = np.repeat(np.arange(len(texts)), counts)
    again = meteor([texts[i] for i in chosen], [references[i] for i in chosen])
    assert found.resample(counts[None].astype(float))[0] == pytest.approx(again.value, abs=1e-12)
