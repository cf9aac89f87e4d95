"""Pictures that a model makes of captions: drawn several times, ranked by a user's function, judged by a user's networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ofa_jax.checkpoint.folders import COMMIT_MARKER
from ofa_jax.config.decoding import GREEDY, DecodeSetting
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, PictureJudgesConfig, SourceConfig
from ofa_jax.eval.codec import load_codec, pictures_of
from ofa_jax.eval.collect import collect
from ofa_jax.eval.painting import PictureJudge, _derangement, generate, load_judges
from ofa_jax.eval.points import Checkpoint, fingerprint, points
from ofa_jax.eval.predict import Predictor
from ofa_jax.eval.runner import Judge, evaluate
from ofa_jax.eval.ways import ways_of
from ofa_jax.eval.world import World
from ofa_jax.models import ofa

SET = EvalSetConfig("paintings", "image_generation", "scenes", "validation")
NETWORKS = """
import numpy as np


def brightest(instruction, picture, predictions):
    assert picture is None and "what is the complete image? caption: a" in instruction
    assert all(one.shape == (16, 16, 3) and one.dtype == np.uint8 for one in predictions)
    return [one.mean() for one in predictions]


def features(pictures):
    return pictures.reshape(len(pictures), -1, 3).mean(1) / 255.0


def probabilities(pictures):
    bright = features(pictures)[:, :1]
    return np.concatenate([bright, 1 - bright], 1)


def images(pictures):
    return np.concatenate([features(pictures), np.ones((len(pictures), 1))], 1)


def texts(words):
    return np.array([[len(word), 1.0, 2.0, 3.0] for word in words])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "networks.py"
    path.write_text(NETWORKS)
    return path


@pytest.fixture(scope="module")
def painting(config, files):
    """The tiny world with paintings, sampled four times, and every network."""
    block = BlockConfig("paintings", "text", 2, 40, 40, (SourceConfig("scenes", "painting"),))
    judges = {name: f"{files}:{name}" for name in ("features", "probabilities", "images", "texts")}
    decode = (f"best:sample,beam=4,top_k=5,tasks=image_generation,scorer={files}:brightest",)
    plan = dataclasses.replace(config.eval, sets=(SET,), decode=decode, pictures=PictureJudgesConfig(**judges))
    return dataclasses.replace(config, eval=plan, data=dataclasses.replace(config.data, blocks=(block,)))


@pytest.fixture(scope="module")
def model(painting):
    graphdef, params = ofa.create(painting.model, painting.vocab, jax.random.key(0), precision=painting.precision)
    return graphdef, params, ofa.init_stats(painting.model, precision=painting.precision)


def test_the_best_of_several_pictures_is_kept_and_judged(painting, model, build_row, tokenizer, open_source):
    given = {"tokenizer": tokenizer, "build_row": build_row, "open_source": open_source}
    world = World(painting, tokenizer=tokenizer, build_row=build_row, open_source=open_source, negatives={})
    found = evaluate(painting, graphdef=model[0], params=model[1], stats=model[2], ways=ways_of(world, (SET,)), **given)
    rows = found.results["paintings"]
    assert list(rows) == ["code_accuracy", "generated_code_accuracy", "clip_score", "inception_score", "fid"]
    assert all(row["n"] == 14 for row in rows.values()) and 1 <= rows["inception_score"]["value"] <= 2 and rows["fid"]["value"] > 0
    assert rows["clip_score"]["baseline_name"] == "the same pictures with each other's texts"

    codec = load_codec(painting.data.dir)
    drawn = pictures_of(np.array([line["generated"] for line in found.predictions]), codec)
    examples = collect(painting, SET, build_row=build_row, open_source=open_source)
    predictor = Predictor(*model, vocab=painting.vocab, batch_rows=painting.eval.batch_rows)
    setting = ways_of(world, (SET,))["paintings"][0]
    everything = predictor.generate(examples, setting)
    for i, best in enumerate(drawn):
        several = np.stack([everything.ids[i], *everything.others[i]]) - painting.vocab.first_code_id
        assert several.shape == (4, 16) and best.mean() == pictures_of(several, codec).mean((1, 2, 3)).max()

    more = {"config": painting, "codec": None, "tokenizer": tokenizer}
    with pytest.raises(DataError, match="found nothing that draws codes in data.dir"):
        generate(predictor, examples, setting, **more)
    greedy = generate(predictor, examples, None, **more)
    assert np.array_equal(greedy, predictor.generate(examples).ids) and not np.array_equal(greedy, everything.ids)
    with pytest.raises(DataError, match="found neither vqgan.npz nor codebook.npz"):
        PictureJudge(painting, open_source=open_source, codec=None)(examples, [line["generated"] for line in found.predictions])


def test_true_pictures_have_no_distance_from_themselves(painting, build_row, tokenizer, open_source, tmp_path):
    examples = collect(painting, SET, build_row=build_row, open_source=open_source)
    codec = load_codec(painting.data.dir)
    codes = [example.record.codes.tolist() for example in examples.examples]
    pictures = pictures_of(np.array(codes), codec)
    features = pictures.reshape(len(pictures), -1, 3).mean(1) / 255.0
    np.savez(tmp_path / "real.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    named = dataclasses.replace(painting.eval.pictures, real=str(tmp_path / "real.npz"))
    config = dataclasses.replace(painting, eval=dataclasses.replace(painting.eval, pictures=named))
    rows = PictureJudge(config, open_source=open_source, codec=codec)(examples, codes)
    assert rows["fid"]["value"] == pytest.approx(0, abs=1e-9) and rows["fid"]["baseline"] > 0.01
    none = dataclasses.replace(config, eval=dataclasses.replace(config.eval, pictures=PictureJudgesConfig()))
    assert PictureJudge(none, open_source=open_source, codec=None)(examples, codes) == {}


@pytest.mark.parametrize("num", [2, 3, 50])
def test_nothing_stays_at_its_place(num):
    order = _derangement(num, np.random.default_rng(num))
    assert sorted(order) == list(range(num)) and not (order == np.arange(num)).any()


def test_training_measures_without_generating(painting, build_row, tokenizer, open_source):
    judge = Judge(painting, tokenizer=tokenizer, build_row=build_row, open_source=open_source)
    examples = collect(painting, SET, build_row=build_row, open_source=open_source)
    rows, _ = judge(examples, [np.asarray(example.sequence.target_ids) for example in examples.examples])
    assert list(rows) == ["code_accuracy"] and rows["code_accuracy"]["value"] == 1


def test_a_sweep_generates_codes_in_every_way_that_names_their_task():
    checkpoint, infilling = Checkpoint(Path("run"), 1), EvalSetConfig("holes", "image_infilling", "scenes", "validation")
    ways = [DecodeSetting(name, method="sample", tasks=("image_generation",)) for name in ("few", "many")]
    found = [(point.eval_set.name, point.setting.name) for point in points([checkpoint], ways, [SET, infilling])]
    assert found == [("paintings", "few"), ("paintings", "many"), ("holes", "forced")]
    with pytest.raises(ConfigError, match=r"decode greedy: found no set it fits, expected one of its tasks among .*'image_generation'"):
        points([checkpoint], [*ways, GREEDY], [SET])


def test_judges_are_found_before_anything_is_decoded_and_another_version_of_one_is_another(
    painting, model, build_row, tokenizer, open_source, tmp_path
):
    files = [tmp_path / name for name in ("one.py", "other.py")]
    for number, file in enumerate(files):
        file.write_text(f"{NETWORKS}\n# version {number}\n")
    first, second = (load_judges(PictureJudgesConfig(features=f"{file}:features")) for file in files)
    assert len(first) == 1 and first != second and first == load_judges(PictureJudgesConfig(features=f"{files[0]}:features"))
    world = World(painting, tokenizer=tokenizer, build_row=build_row, open_source=open_source, negatives={})
    point = points([Checkpoint(tmp_path, 1)], ways_of(world, (SET,))["paintings"][:1], [SET])[0]
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "1" / COMMIT_MARKER).touch()
    named = [dataclasses.replace(painting.eval, pictures=PictureJudgesConfig(features=f"{tmp_path}/one.py:features"))]
    judged = dataclasses.replace(world, config=dataclasses.replace(painting, eval=named[0]))
    before = fingerprint(judged, point, None)
    files[0].write_text(f"{NETWORKS}\n# version 2\n")
    assert fingerprint(judged, point, None) != before

    lost = dataclasses.replace(painting.eval, pictures=PictureJudgesConfig(features="nowhere.py:features"))
    given = {"tokenizer": tokenizer, "build_row": build_row, "open_source": None}  # not reached
    with pytest.raises(ConfigError, match=r"eval.pictures.features: found no file nowhere.py"):
        evaluate(dataclasses.replace(painting, eval=lost), graphdef=model[0], params=model[1], stats=model[2], **given)
