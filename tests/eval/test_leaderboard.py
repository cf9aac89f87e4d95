"""Leaderboard files and official accuracy, from prepared records with official ids and ten answers a question, by the real command."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO

from launch import eval as launch_eval
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import GREEDY, SweepConfig
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import EOS_ID, EvalSetConfig
from ofa_jax.data.records import NO_ID, RecordError, open_records
from ofa_jax.eval import leaderboard, sweep
from ofa_jax.eval.baselines import TrainingData, predict_baseline
from ofa_jax.eval.collect import Examples, collect
from ofa_jax.eval.leaderboard import Request, image_id, read_reference, request_of
from ofa_jax.eval.points import find_checkpoints
from ofa_jax.eval.predict import Decoded
from ofa_jax.eval.runner import Judge
from ofa_jax.eval.world import load_world
from ofa_jax.metrics.vqa_answers import vqa_answers
from ofa_jax.models import ofa
from ofa_jax.prepare.builders import base

FIRST, COUNT = 391895, 7  # the image ids of the validation split are FIRST, FIRST + 1, ...
EMPTY = FIRST + 5
WORDS = {1: "one", 2: "two", 3: "three"}
VQA, CAPTIONING, DETECTION = "vqa/scenes", "captioning/scenes", "detection/scenes"
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 64, "name": "tree"}]


def official(scene, index, split):
    """A scene of the tiny world as the official files would have it: COCO's name, VQA's ids, ten answers to each question; one picture
    in which nobody found an object."""
    image = (FIRST if split == "validation" else 0) + index
    count, left = scene.questions
    name, number = left.answer, int(count.answer)
    others = [name] * 10 if index == 0 else [name] * 2 + [f"a {name}"] + ["tree house"] * 7
    answers = ([str(number)] * 4 + [WORDS[number]] * 3 + ["many", "", "Many"], others)
    questions = (dataclasses.replace(q, question_id=image * 1000 + k, answers=tuple(answers[k])) for k, q in enumerate((count, left)))
    objects = () if image == EMPTY else scene.objects
    return dataclasses.replace(scene, record_id=f"COCO_val2014_{image:012d}", questions=tuple(questions), objects=objects)


@pytest.fixture(scope="module")
def run(config, open_source, tmp_path_factory):
    """A prepared dataset on disk, the config of a run that evaluates it, and the run's one checkpoint."""
    folder = tmp_path_factory.mktemp("official")

    class Official(base.RecordBuilder, skip_registration=True):
        name = "scenes"
        DESCRIBED = base.Described(record="image", source="tests", licence="none")

        def splits(self):
            return ("train", "validation")

        def records(self, split):
            source = open_source(dataclasses.replace(config.data.blocks[0].sources[0], split=split))
            yield from (official(record, i, split) for i, record in enumerate(source.read(range(len(source)))))

        def facts(self):
            return {"num_codes": config.vocab.num_codes}

    base.build(Official, data_dir=folder / "data", options=base.Options(), max_records=24, progress=lambda _: None)
    sets = tuple(EvalSetConfig(f"{t}/scenes", t, "scenes", "validation") for t in ("vqa", "captioning", "detection", "grounding"))
    own = dataclasses.replace(
        config,
        name="official",
        workdir=str(folder / "run"),
        data=dataclasses.replace(config.data, dir=str(folder / "data"), blocks=config.data.blocks[:2]),
        eval=dataclasses.replace(config.eval, sets=sets, source_len=40),
    )
    (folder / "config.pickle").write_bytes(pickle.dumps(own))
    (folder / "run.py").write_text(
        "import pickle\nfrom pathlib import Path\n\n\ndef get_config(arg=''):\n"
        "    return pickle.loads(Path(__file__).with_name('config.pickle').read_bytes())\n"
    )
    params = jax.jit(lambda key: ofa.create(own.model, own.vocab, key)[1])(jax.random.key(0))
    manager, zero = CheckpointManager(folder / "run"), jnp.zeros((), jnp.int32)
    manager.save(0, {"params": params, "stats": ofa.init_stats(own.model), "step": zero, "data_step": zero}, config=own, wait=True)
    manager.close()
    images = [{"id": FIRST + i} for i in range(COUNT)]
    questions = [{"question_id": image["id"] * 1000 + k, "question": "?"} for image in images for k in (0, 1)]
    files = {"questions": {"questions": questions[::-1]}, "captions": {"images": images}}
    files |= {"instances": {"images": images, "categories": CATEGORIES}, "annotations": {"annotations": questions}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder, own


@pytest.fixture(scope="module")
def world(run):
    return load_world(run[1], run[1].eval.sets)


def evaluate(folder, *flags):
    """What the command says, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    progress = logging.getLogger("ofa_jax.eval")
    before, cache = list(progress.handlers), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = launch_eval.main(["launch/eval.py", f"--config={folder / 'run.py'}", *flags])
    finally:
        progress.handlers = before
        jax.config.update("jax_compilation_cache_dir", None)
        os.environ.pop("JAX_COMPILATION_CACHE_DIR") if cache is None else os.environ.update(JAX_COMPILATION_CACHE_DIR=cache)
    return code, out.getvalue() + err.getvalue()


def sweep_flags(folder, out):
    references = [f"--reference={folder / name}.json" for name in ("questions", "instances")]
    return ["--decode=greedy", f"--sets={VQA},{CAPTIONING},{DETECTION}", f"--out={out}", *references]


@pytest.fixture(scope="module")
def swept(run):
    folder, _ = run
    return evaluate(folder, *sweep_flags(folder, folder / "sweep"), "--submission")


def submitted(folder):
    """Task -> content, predictions of the point, path."""
    found = {}
    for path in sorted(folder.glob("*.submission.json")):
        found[path.name.split("-")[1]] = json.loads(path.read_text()), path
    return found


def test_a_sweep_writes_the_leaderboard_file_of_every_point(run, swept):
    folder, _ = run
    code, said = swept
    assert code == 0, said
    files = submitted(folder / "sweep" / "submissions")
    assert set(files) == {"vqa", "captioning", "detection"}
    lines = {}
    for task, (_, path) in files.items():
        predictions = folder / "sweep" / "points" / path.name.replace(".submission.json", ".predictions.jsonl")
        lines[task] = [json.loads(line) for line in predictions.read_text().splitlines()]
        assert f"{path}: " in said
    answers, captions, objects = (files[task][0] for task in ("vqa", "captioning", "detection"))
    assert sorted(a["question_id"] for a in answers) == [image * 1000 + k for image in range(FIRST, FIRST + COUNT) for k in (0, 1)]
    assert [a["question_id"] for a in answers] == [line["question_id"] for line in lines["vqa"]]
    assert [a["answer"] for a in answers] == [line["prediction"] for line in lines["vqa"]]
    assert all(len(line["answers"]) == 10 for line in lines["vqa"])
    assert [image_id(line["record"]) for line in lines["detection"] if line["reference"] == []] == [EMPTY]
    images = [image_id(line["record"]) for line in lines["captioning"]]
    assert sorted(images) == list(range(FIRST, FIRST + COUNT))
    assert captions == [{"image_id": i, "caption": line["prediction"]} for i, line in zip(images, lines["captioning"], strict=True)]
    assert "14 answers" in said and "7 captions" in said and f"7 images, {len(objects)} objects" in said
    coco = COCO()
    coco.dataset = {"images": [{"id": FIRST + i} for i in range(COUNT)], "annotations": [], "categories": CATEGORIES}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        coco.loadRes(str(files["captioning"][1]))
    rows = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert [row["metric"] for row in rows if row["set"] == VQA] == ["accuracy", "vqa_answers", "vqa_accuracy"]
    assert [row["metric"] for row in rows if row["set"] == DETECTION] == ["ap50", "f1_50", "ap"]


def test_points_that_are_there_get_theirs_from_the_stored_predictions(run, swept):
    folder, _ = run
    first = {path.name: path.read_bytes() for path in (folder / "sweep" / "submissions").iterdir()}
    for name in first:
        (folder / "sweep" / "submissions" / name).unlink()
    code, said = evaluate(folder, *sweep_flags(folder, folder / "sweep"), f"--submission={folder / 'sent'}")
    assert code == 0 and "points)" not in said, said  # nothing was decoded
    assert {path.name: path.read_bytes() for path in (folder / "sent").iterdir()} == first
    assert not list((folder / "sweep" / "submissions").iterdir())


def test_the_plain_evaluation_writes_the_file_of_the_greedy_point(run, swept):
    folder, _ = run
    code, said = evaluate(folder, f"--sets={VQA}", "--no-report", f"--submission={folder / 'plain'}")
    assert code == 0, said
    [path] = (folder / "plain").iterdir()
    assert f"{path}: 14 answers" in said and "vqa_answers" in said
    predictions = folder / "sweep" / "points" / path.name.replace(".submission.json", ".predictions.jsonl")
    greedy = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert json.loads(path.read_text()) == [{"question_id": line["question_id"], "answer": line["prediction"]} for line in greedy]


def test_only_the_first_host_writes(run, swept, world, tmp_path, monkeypatch):
    folder, config = run
    submissions = leaderboard.prepare(world, config.eval.sets[:1], Request(tmp_path))
    checkpoints = find_checkpoints([folder / "run"])

    def again():
        sweep.run_sweep(
            world, SweepConfig((GREEDY,), sets=(VQA,)), checkpoints=checkpoints, out=folder / "sweep", progress=said.append,
            submissions=submissions,
        )  # fmt: skip

    said: list[str] = []
    with monkeypatch.context() as other:
        other.setattr(sweep.hosts, "is_first", lambda: False)
        again()
    assert not list(tmp_path.iterdir())
    again(), again()
    assert len(list(tmp_path.iterdir())) == 1
    assert sum("14 answers" in line for line in said) == 1  # a watched sweep comes by again


def test_an_old_file_never_stands_beside_new_predictions(run, world, tmp_path, monkeypatch):
    folder, config = run

    def decode(*arguments):
        examples = next(a for a in arguments if isinstance(a, Examples)).examples
        return Decoded([np.array([EOS_ID])] * len(examples), np.full(len(examples), np.nan))

    def compute(submissions):
        checkpoints, said = find_checkpoints([folder / "run"]), []
        sweep.run_sweep(
            world, SweepConfig((GREEDY,), sets=(VQA,)), checkpoints=checkpoints, out=tmp_path, progress=said.append, submissions=submissions
        )
        assert any("(1 of 1 points)" in line for line in said)

    monkeypatch.setattr(sweep, "decode_on_all_hosts", decode)
    compute(leaderboard.prepare(world, config.eval.sets[:1], Request(None)))
    [sent], [predictions] = (tmp_path / "submissions").iterdir(), (tmp_path / "points").glob("*.jsonl")
    assert {row["answer"] for row in json.loads(sent.read_text())} == {""}
    predictions.unlink()
    compute(None)
    assert predictions.exists() and not sent.exists()


def test_ids_are_checked_before_anything_is_decoded(run):
    folder, _ = run
    lacking = json.loads((folder / "questions.json").read_text())["questions"]
    (folder / "lacking.json").write_text(json.dumps({"questions": lacking[2:] + [{"question_id": 5}]}))
    flags = ["--decode=greedy", f"--sets={VQA}", f"--out={folder / 'never'}", "--submission"]
    code, said = evaluate(folder, *flags, f"--reference={folder / 'lacking.json'}")
    last = (FIRST + COUNT - 1) * 1000
    assert code == launch_eval.EXIT_MISTAKE and not (folder / "never").exists()
    assert said == (
        f"DataError: set {VQA} (scenes/validation) beside {folder / 'lacking.json'}: found 1 missing (5), 2 unexpected ({last}, "
        f"{last + 1}) among 14 question ids, expected each of 13 once\n"
    )


def test_official_accuracies_by_hand(run, world, tokenizer):
    """Count questions: 4 people wrote the digit, 3 the word: 7 agree once normalised. The others: 3 agree once articles are gone, 2
    exactly, and all ten for the first picture."""
    _, config = run
    examples = collect(config, config.eval.sets[0], build_row=world.build_row, open_source=world.open_source)
    said = [e.item.answer if e.item.answer != "2" else "two" for e in examples.examples]
    assert said.count("two") == 2
    ids = [np.array([*tokenizer.encode(f" {answer}"), EOS_ID]) for answer in said]
    judge = Judge(config, tokenizer=tokenizer, build_row=world.build_row, open_source=world.open_source)
    results, lines = judge(examples, ids)
    assert [line["prediction"] for line in lines] == said
    # 7 of 10 make 1, with or without one of them; 3 of 10 make (3 * 2/3 + 7 * 1) / 10 = 0.9.
    assert results["vqa_answers"]["value"] == pytest.approx((7 * 1 + 1 + 6 * 0.9) / 14)
    # Exactly "2" has 4 people, exactly "two" 3; 2 people have weight 0.6.
    assert results["vqa_accuracy"]["value"] == pytest.approx((5 * 1 + 2 * 0.9 + 1 + 6 * 0.6) / 14)
    assert results["accuracy"]["value"] == pytest.approx(12 / 14)
    _, naive = predict_baseline(examples, TrainingData(world.open_source, world.build_row), codec=None)
    assert results["vqa_answers"]["baseline"] == vqa_answers(naive, [e.item.answers for e in examples.examples]).value
    assert 0 < results["vqa_answers"]["baseline"] < 1
    for name in ("vqa_answers", "vqa_accuracy"):
        assert results[name]["n"] == 14 and results[name]["baseline_name"] == results["accuracy"]["baseline_name"]


@pytest.fixture
def changed(world):
    """`changed(change)`: the world with the validation records in order of their ids, each changed by change(number, record)."""

    def make(change):
        def open_source(source):
            stored = open_records(world.config.data.dir, source.dataset, source.split)
            records = sorted(stored.read(range(len(stored))), key=lambda record: record.record_id)  # shards are shuffled
            return _Changed([change(i, record) for i, record in enumerate(records)])

        return dataclasses.replace(world, open_source=open_source)

    return make


class _Changed(list):
    def read(self, indices):
        return [self[i] for i in indices]


def _with_questions(record, **changes):
    return dataclasses.replace(record, questions=tuple(dataclasses.replace(q, **changes) for q in record.questions))


def test_a_set_of_which_only_some_questions_have_answers_is_refused(run, changed):
    eval_set = run[1].eval.sets[0]
    other = changed(lambda i, record: _with_questions(record, answers=("1", "2", "2")) if i == 2 else record)
    with pytest.raises(RecordError) as error:
        collect(other.config, eval_set, build_row=other.build_row, open_source=other.open_source)
    assert str(error.value) == (
        f"scenes record COCO_val2014_000000{FIRST + 2}: field answers/text: found 3 people's answers to 'how many objects are there?' "
        f"(fewer than 4 to 2 of the 14 questions of set {VQA}), expected at least 4 for every question of the set, ten in VQAv2, or none "
        "for any"
    )
    none = changed(lambda _, record: _with_questions(record, answers=()))
    examples = collect(none.config, eval_set, build_row=none.build_row, open_source=none.open_source)
    ids = [np.array([EOS_ID])] * len(examples.examples)
    judge = Judge(none.config, tokenizer=none.tokenizer, build_row=none.build_row, open_source=none.open_source)
    assert list(judge(examples, ids)[0]) == ["accuracy"]


def test_a_split_in_which_nobody_looked_for_objects_has_none(run, changed):
    other = changed(lambda _, record: dataclasses.replace(record, objects=()))
    with pytest.raises(DataError, match=f"eval set {DETECTION}: found no item for detection in scenes/validation, expected one"):
        collect(other.config, run[1].eval.sets[2], build_row=other.build_row, open_source=other.open_source)


def test_records_without_an_id_of_their_own_are_named(run, changed):
    config = run[1]

    def refused(change, eval_set, sentence):
        with pytest.raises(DataError) as error:
            leaderboard.prepare(changed(change), [eval_set], Request(None))
        assert str(error.value) == sentence

    vqa, captioning = config.eval.sets[:2]
    refused(
        lambda i, r: _with_questions(r, question_id=NO_ID) if i == 1 else r,
        vqa,
        f"set {VQA}: scenes record COCO_val2014_000000{FIRST + 1}: field questions/question_id: found -1 (no id) for 'how many objects are "
        "there?', expected an id of 0 or more: leaderboards go by it",
    )
    refused(
        lambda i, r: _with_questions(r, question_id=FIRST * 1000 + 1) if i == 4 else r,
        vqa,
        f"set {VQA}: scenes record COCO_val2014_000000{FIRST + 4}: field questions/question_id: found question id {FIRST}001, which record "
        f"COCO_val2014_000000{FIRST} has too, expected ids that differ",
    )
    refused(
        lambda i, r: dataclasses.replace(r, record_id=f"flickr/{FIRST}") if i == 3 else r,
        captioning,
        f"set {CAPTIONING}: scenes record flickr/{FIRST}: field record_id: found image id {FIRST}, which record COCO_val2014_000000{FIRST} "
        "has too, expected ids that differ",
    )
    refused(
        lambda i, r: dataclasses.replace(r, record_id="cat.jpg") if i == 3 else r,
        captioning,
        f"set {CAPTIONING}: scenes record cat.jpg: field record_id: found 'cat.jpg', expected an id that is or ends with a number, the "
        "image id: leaderboards go by it",
    )
    assert [image_id(text) for text in ("COCO_val2014_000000391895", "0", "test/12", "a1b", "٣")] == [391895, 0, 12, None, None]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "found no readable file (No such file or directory), expected VQA's questions or COCO's images"),
        ("{", "found what is no JSON ("),
        (b"\xff\xfe\xfa", "found what is no JSON ("),
        ([1], "found a JSON list without fields, expected questions or annotations (VQA) or images (COCO)"),
        ({"info": 1, "type": 2}, "found fields info, type, expected questions or annotations (VQA) or images (COCO)"),
        ({"questions": {"a": 1}}, "field questions: found a JSON dict, expected a list of objects"),
        ({"questions": []}, "field questions: found an empty list, expected every question"),
        ({"questions": [{"question_id": 1}, {"id": 2}]}, "questions[1]: field question_id: found 'None', expected an integer"),
        ({"annotations": [{"question_id": "7"}]}, "annotations[0]: field question_id: found '7', expected an integer"),
        ({"images": [{"id": True}]}, "images[0]: field id: found 'True', expected an integer"),
        ({"images": [3]}, "images[0]: field id: found '3', expected an integer"),
        (
            {"images": [{"id": i % 7} for i in range(13)]},
            "images: field id: found 6 ids more than once (0, 1, 2, 3, 4, ...), expected",
        ),
        ({"images": [{"id": 1}], "categories": 3}, "field categories: found a JSON int, expected a list of objects"),
        ({"images": [{"id": 1}], "categories": [{"id": 1}]}, "categories[0]: field name: found None, expected a text that no category"),
        (
            {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]},
            "categories[1]: field name: found 'cat', expected a text that no category before has",
        ),
    ],
)
def test_a_file_that_is_no_official_one_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "official.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else (content if content == "{" else json.dumps(content)).encode())
    with pytest.raises(DataError) as error:
        read_reference(path)
    assert str(error.value).startswith(f"{path}: {sentence}") and "\n" not in str(error.value)


def test_flags_that_do_not_fit_are_one_sentence(run, world):
    folder, config = run
    vqa, captioning, detection, grounding = config.eval.sets

    def refused(sets, references, sentence):
        with pytest.raises(ConfigError, match=sentence):
            leaderboard.prepare(world, sets, request_of("", [text.format(folder) for text in references]))

    with pytest.raises(ConfigError, match="--reference: found a.json without --submission, expected both"):
        request_of(None, ["a.json"])
    refused([grounding], [], "--submission: found tasks grounding, expected a set of vqa, captioning, detection")
    refused([detection], [], f"set {DETECTION}: found no official file with categories, expected --reference=FILE")
    refused([detection], ["{}/captions.json"], f"found image ids, expected those of a set that no other file names: {DETECTION}")
    refused([vqa], [f"{DETECTION}={{}}/instances.json"], f"found set '{DETECTION}', expected one of {VQA}")
    refused([vqa], [f"{VQA}={{}}/instances.json"], f"found image ids and categories, expected those that set {VQA} needs")
    refused([vqa, captioning], ["{}/questions.json", "{}/annotations.json"], f"for set {VQA} too, expected one file: write {VQA}=FILE")
    refused(
        [captioning, detection], ["{}/captions.json", "{}/instances.json"], f"captions.json for set {CAPTIONING} too, expected one file"
    )
    sets = [vqa, captioning, detection]
    given = [f"{CAPTIONING}={{}}/captions.json", "{}/annotations.json", "{}/instances.json"]
    found = leaderboard.prepare(world, sets, request_of("sent", [text.format(folder) for text in given]))
    assert {s.name: found._plans[s.name].reference.path.name for s in sets} == {
        VQA: "annotations.json", CAPTIONING: "captions.json", DETECTION: "instances.json"
    }  # fmt: skip
    part = [dataclasses.replace(captioning, limit=5)]
    with pytest.raises(DataError, match=r"scenes/validation, limit=5\) beside .*captions.json: found 2 missing \(.*\) among 5 image ids"):
        leaderboard.prepare(world, part, request_of("", [f"{folder}/captions.json"]))


def test_tasks_of_fine_tuning_have_the_formats_of_their_kind(run, world, tmp_path):
    vqa, captioning = (
        dataclasses.replace(eval_set, name=task, task=task)
        for eval_set, task in zip(run[1].eval.sets[:2], ("answering", "short_captioning"), strict=True)
    )
    submissions = leaderboard.prepare(
        world, [vqa, captioning], request_of("", [str(run[0] / f"{n}.json") for n in ("questions", "captions")])
    )
    answers = [{"question_id": (FIRST + i) * 1000 + k, "prediction": "cat"} for i in range(COUNT) for k in (0, 1)]
    captions = [{"record": f"test.tsv@7/{FIRST + i}", "prediction": "a cat"} for i in range(COUNT)]
    for name, lines, first in (
        ("answering", answers, {"question_id": FIRST * 1000, "answer": "cat"}),
        ("short_captioning", captions, {"image_id": FIRST, "caption": "a cat"}),
    ):
        submissions.write(name, lines, source="predictions.jsonl", results=tmp_path, name=name)
        assert json.loads((tmp_path / "submissions" / f"{name}.submission.json").read_text())[0] == first


def test_labels_that_are_no_category_are_counted_and_named(run, world, tmp_path):
    folder, config = run
    submissions = leaderboard.prepare(world, [config.eval.sets[2]], request_of("", [f"{folder}/instances.json"]))
    objects = [{"label": label, "box": [1.0, 2.0, 5.0, 4.5]} for label in ("dog", "hat", "cat", "Dog", "hat")]
    lines = [{"record": f"COCO_val2014_{FIRST + i:012d}", "prediction": objects if i == 2 else []} for i in range(COUNT)]

    def write(lines):
        return submissions.write(DETECTION, lines, source="predictions.jsonl", results=tmp_path, name="point")

    path = tmp_path / "submissions" / "point.submission.json"
    assert write(lines) == (
        f"{path}: 7 images, 2 objects; 3 more of 2 labels are left out, no categories of {folder}/instances.json: 'hat' 2x, 'Dog' 1x"
    )
    assert json.loads(path.read_text()) == [
        {"image_id": FIRST + 2, "category_id": 18, "bbox": [1.0, 2.0, 4.0, 2.5], "score": 1.0},
        {"image_id": FIRST + 2, "category_id": 17, "bbox": [1.0, 2.0, 4.0, 2.5], "score": 1 / 3},  # its place in the output
    ]
    held = path.read_bytes()
    with pytest.raises(DataError, match=rf"is not written: found 1 missing \({FIRST + 6}\) among 6 image ids, expected each of 7 once"):
        write(lines[:-1])
    with pytest.raises(DataError, match="line 1: field prediction: found .*, expected objects with a label and a box of four numbers"):
        write([{"record": "a1", "prediction": [{"label": "dog", "box": [1, 2]}]}])
    assert path.read_bytes() == held


def test_stored_predictions_of_another_form_are_named(run, world, tmp_path):
    submissions = leaderboard.prepare(world, [run[1].eval.sets[0]], Request(None))
    path = tmp_path / "point.predictions.jsonl"
    for text, sentence in (
        ('{"prediction": "a"}\n', "line 1: field question_id: found 'None' of type NoneType, expected one of type int; remove the file"),
        ('{"prediction": 1, "question_id": 2}\n', "line 1: field prediction: found '1' of type int, expected one of type str"),
        ('{"prediction": "a", "question_id": 2}\n{"pred', r"line 2: field \(line\): found what is no JSON"),
        ("[]\n", r"line 1: field \(line\): found \[\], expected an object"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"{path} {sentence}"):
            submissions.write_stored(VQA, path, results=tmp_path, name="point")
    assert list(tmp_path.iterdir()) == [path]
