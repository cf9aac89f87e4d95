"""The public sets of OFA's tasks through the real command: small files in their own layouts become records that are read back."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ofa_jax.data.records import Box, Caption, LabelledText, Question, Region, load_json, open_records
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare.codes import CodeOptions, write_codes
from ofa_jax.prepare.sets import DOWNSTREAM, LAYOUTS, SETS
from tests.prepare.layouts.annotated_fixtures import write_coco, write_pickle, write_refcoco, write_vqa_v2
from tests.prepare.layouts.fixtures.streamed import encoded, jpeg, write_tsv
from tests.prepare.layouts.labelled_fixtures import write_fashion_mnist, write_gigaword, write_glue, write_imagenet, write_snli_ve

ROOT = Path(__file__).parents[3]


def command() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_command", ROOT / "launch" / "prepare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def build(name: str, source: Path, data: Path, *flags: str) -> dict[str, list[Any]]:
    """Runs `launch/prepare.py build`, and `verify` over what it made; returns the records of every split."""
    assert command()(["build", name, f"--source={source}", f"--data_dir={data}", *flags]) == 0
    assert command()(["verify", f"--data_dir={data}"]) == 0
    dataset = next((flag.removeprefix("--dataset=") for flag in flags if flag.startswith("--dataset=")), name)
    splits = load_json(data / dataset / "manifest.json")["splits"]
    read = {split: open_records(data, dataset, split) for split in splits}
    return {split: [source[place] for place in range(len(source))] for split, source in read.items()}


def test_names_are_those_of_no_pretraining_set() -> None:
    assert not SETS.keys() & DOWNSTREAM.keys()


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"])
def test_glue(task: str, tmp_path: Path) -> None:
    write_glue(tmp_path / "glue_data")
    made = build(task, tmp_path / "glue_data", tmp_path / "data")
    others = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(made) == ["train", *others] and [len(records) for records in made.values()] == [2, *[1] * len(others)]
    assert all(isinstance(record, LabelledText) and record.dataset == task for records in made.values() for record in records)
    if task == "sst2":
        assert made["train"][0] == LabelledText("train/1", "sst2", "hide new secretions", "", "negative")
        opened = tfds.builder_from_directory(str(tmp_path / "data" / "sst2")).as_data_source(split="validation")
        assert opened[0]["answer"] == b"positive" and opened[0]["text2"] == b""
        manifest = load_json(tmp_path / "data" / "sst2" / "manifest.json")
        assert (manifest["record"], manifest["schema_version"], manifest["rejects"]) == ("labelled_text", 2, {})


def test_a_text_that_comes_twice_stays(tmp_path: Path) -> None:
    write_glue(tmp_path / "glue_data")
    dev = tmp_path / "glue_data" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text() + "a charming film\t1\n")
    made = build("sst2", tmp_path / "glue_data", tmp_path / "data")
    assert [record.record_id for record in made["validation"]] == ["validation/1", "validation/2"]


def test_snli_ve(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write_snli_ve(tmp_path / "raw", split=split)
    made = build("snli_ve", tmp_path / "raw", tmp_path / "data")
    assert set(made) == {"train", "validation", "test"}
    for records in made.values():
        assert [(one.record_id, one.captions) for one in records] == [
            ("9/0", (Caption("Two dogs run."),)),
            ("36979/0", (Caption("A man sleeps."),)),
            ("36979/1", (Caption("A man in bed."),)),
        ]
        assert records[0].questions == (Question("Animals run.", "entailment", kind="entailment"),)
        said = [(question.question, question.answer, question.kind) for question in records[1].questions]
        assert said == [("He is awake.", "contradiction", "entailment"), ("A person sleeps.", "entailment", "entailment")]
        assert records[0].image == (tmp_path / "raw" / "flickr30k-images" / "9.jpg").read_bytes()
    assert load_json(tmp_path / "data" / "snli_ve" / "manifest.json")["rejects"] == {"read/label": 3}
    line = json.loads((tmp_path / "data" / "snli_ve" / "rejects.jsonl").read_text().splitlines()[0])
    assert (line["record"], line["field"], line["found"]) == ("9/0", "questions[1].answer", "'-'")
    assert DOWNSTREAM["snli_ve"].layout(str(tmp_path), "snli_ve").picture_key("36979/1") == "flickr30k/36979"


def test_a_damaged_line_of_snli_ve_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_snli_ve(tmp_path)
    flags = [f"--source={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--option=splits=train"]
    for line, found in (
        ('{"sentence1": ', "line 6: found b'{\"sentence1\": '"),
        ('{"sentence1": "a"}', "line 6: field Flickr30K_ID: found"),
    ):
        path = tmp_path / "snli_ve_train.jsonl"
        whole = path.read_text()
        path.write_text(whole + line + "\n")
        assert command()(["build", "snli_ve", *flags]) == 1
        assert found in capsys.readouterr().err
        path.write_text(whole)


def test_gigaword(tmp_path: Path) -> None:
    write_gigaword(tmp_path)
    made = build("gigaword", tmp_path, tmp_path / "data", "--option=lines_per_input=2")
    assert {split: len(records) for split, records in made.items()} == {"train": 5, "validation": 1, "test": 1}
    assert [record.record_id for record in made["train"]] == [f"train/{number}" for number in range(1, 6)]
    assert made["train"][4] == LabelledText("train/5", "gigaword", "the long article train 5 , of unk #.# words .", "", "headline train 5")
    assert made["validation"][0].answer == "headline dev 1"


def test_lines_of_gigaword_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gigaword(tmp_path)
    titles = tmp_path / "train.tgt.txt"
    titles.write_bytes(b"one\n\ncaf\xe9\nfour\nfive")  # no line feed at the end
    made = build("gigaword", tmp_path, tmp_path / "data")
    assert [record.answer for record in made["train"]] == ["one", "four", "five"]
    lines = [json.loads(line) for line in (tmp_path / "data" / "gigaword" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["record"], line["reason"], line["field"]) for line in lines] == [
        ("train/2", "empty_text", "train.tgt.txt"),
        ("train/3", "schema", "train.tgt.txt"),
    ]
    titles.write_bytes(b"one\n")
    flags = [f"--source={tmp_path}", f"--data_dir={tmp_path / 'other'}"]
    assert command()(["build", "gigaword", *flags]) == 1
    assert "train.tgt.txt: found 1 lines, expected 5 as in train.src.txt" in capsys.readouterr().err
    titles.unlink()
    assert command()(["build", "gigaword", *flags]) == 1
    assert "found train.src.txt in" in capsys.readouterr().err


TENCH, CRANE, SPANIEL = "tench, Tinca tinca", "crane", "cocker spaniel, English cocker spaniel, cocker"


@pytest.mark.parametrize("form", ["kit", "caffe", "folders"])
def test_imagenet(form: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path / "raw", form=form)
    made = build("imagenet", tmp_path / "raw", tmp_path / "data")
    assert [(one.record_id, one.captions[0].text) for one in made["train"]] == [
        ("n01440764/n01440764_3.JPEG", TENCH),
        ("n02012849/n02012849_3.JPEG", CRANE),
        ("n02102318/n02102318_3.JPEG", SPANIEL),
    ]
    shown = {one.record_id.rpartition("/")[2].removesuffix(".JPEG"): one.captions for one in made["validation"]}
    assert shown == {
        "ILSVRC2012_val_00000001": (Caption(SPANIEL),),
        "ILSVRC2012_val_00000002": (Caption(TENCH),),
        "ILSVRC2012_val_00000003": (Caption(TENCH),),
    }


def test_what_imagenet_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    write_imagenet(raw, form="kit")

    def failed() -> str:
        assert command()(["build", "imagenet", f"--source={raw}", f"--data_dir={tmp_path / 'data'}"]) == 1
        return capsys.readouterr().err

    truth = raw / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n9\n1\n")
    assert "ground_truth.txt: found '9', expected a number that" in failed()
    truth.write_text("2\n3\n")
    assert "ground_truth.txt: found 2 numbers, expected 3, one for each picture" in failed()
    truth.write_text("2\n3\n1\n")
    (raw / "meta.mat").write_bytes(b"no table")
    assert "meta.mat: found " in failed()
    (raw / "meta.mat").unlink()
    assert "found no meta.mat or */meta.mat or" in failed()
    (raw / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\n")
    assert "expected the name of a picture and a number from 0 to 2" in failed()
    (raw / "synset_words.txt").write_text("n01440764 tench, Tinca tinca\n")
    (raw / "val.txt").write_text("".join(f"ILSVRC2012_val_0000000{number}.JPEG 0\n" for number in (1, 2, 3)))
    made = build("imagenet", raw, tmp_path / "data")
    assert [len(records) for records in made.values()] == [1, 3]
    lines = [json.loads(line) for line in (tmp_path / "data" / "imagenet" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["record"], line["reason"], line["found"]) for line in lines] == [
        ("n02012849/n02012849_3.JPEG", "label", "n02012849"),
        ("n02102318/n02102318_3.JPEG", "label", "n02102318"),
    ]


def test_splits_of_coco_refcoco_and_vqa(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    described = json.loads((tmp_path / "coco" / "dataset_coco.json").read_text())
    described["images"][1] |= {"split": "test"}
    (tmp_path / "coco" / "dataset_coco.json").write_text(json.dumps(described))
    made = build("coco_karpathy", tmp_path / "coco", tmp_path / "data")
    ids = {split: [record.record_id for record in records] for split, records in made.items()}
    assert ids == {"train": ["9", "30"], "validation": ["31"], "test": ["25"]}
    assert made["test"][0].captions[0].text == "A person in picture 25."
    (tmp_path / "data" / "coco_karpathy" / "manifest.json").unlink()  # as after a kill: options of several values are those there
    assert build("coco_karpathy", tmp_path / "coco", tmp_path / "data") == made

    write_refcoco(tmp_path / "refer")
    path = tmp_path / "refer" / "refcoco" / "refs(unc).p"
    references = pickle.loads(path.read_bytes(), encoding="latin1")
    write_pickle(path, [*references, *({**references[3], "ref_id": 4 + n, "split": split} for n, split in enumerate(("testA", "testB")))])
    made = build("refcoco_unc", tmp_path / "refer", tmp_path / "data")
    assert {split: len(records) for split, records in made.items()} == {"train": 2, "validation": 1, "test_a": 1, "test_b": 1}
    assert made["test_b"][0].regions == (Region("boy", Box(4, 6, 14, 18)),)

    for split in ("train", "val"):
        write_vqa_v2(tmp_path / "vqa", split=split)
    made = build("vqa_v2_splits", tmp_path / "vqa", tmp_path / "data")
    assert set(made) == {"train", "validation"}
    assert made["validation"][0].questions[0].answers == ("yes",) * 9 + ("no",)
    manifest = load_json(tmp_path / "data" / "vqa_v2_splits" / "manifest.json")
    assert manifest["left_out"] == {split: {"questions": 0, "answers": 15, "pictures": 0} for split in ("train", "validation")}


def test_fashion_mnist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    write_fashion_mnist(raw)
    made = build("fashion_mnist", raw, tmp_path / "data", "--option=held_out=2")
    assert {split: [one.record_id for one in records] for split, records in made.items()} == {
        "train": [f"train/0000{place}" for place in range(5)],
        "validation": ["train/00005", "train/00006"],
        "test": ["t10k/00000", "t10k/00001", "t10k/00002"],
    }
    [sandal, shirt] = made["validation"]
    assert (sandal.captions, shirt.captions) == ((Caption("sandal"),), (Caption("shirt"),))
    assert (decode_image(shirt.image) == np.full((28, 28, 3), 180)).all()

    assert command()(["answers", "--dataset=fashion_mnist", f"--data_dir={tmp_path / 'data'}", "--most=4"]) == 0
    assert (tmp_path / "data" / "fashion_mnist" / "answers.txt").read_text() == "coat\ndress\npullover\nt-shirt/top\n"
    assert "4 of 5 different answers, 80.0% of all 5" in capsys.readouterr().out
    listed = tmp_path / "data" / "fashion_mnist" / "answers.txt"
    listed.write_text("an official one\n")
    again = ["answers", "--dataset=fashion_mnist", f"--data_dir={tmp_path / 'data'}"]
    assert command()(again) == 1 and command()([*again, "--most=-1"]) == 1
    said = capsys.readouterr().err
    assert "found another list of 1 answers, expected none; --rebuild replaces it" in said and "--most: found -1" in said
    assert listed.read_text() == "an official one\n"
    assert command()([*again, "--rebuild"]) == 0 and len(listed.read_text().splitlines()) == 5
    capsys.readouterr()

    images, labels = (raw / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    whole = gzip.decompress(images.read_bytes())
    broken = [
        (images, gzip.compress(whole[:-1]), "found 2,351 values, expected 3 x 28 x 28"),
        (images, images.read_bytes()[:40], "expected a whole gzip file"),
        (images, labels.read_bytes(), "found bytes beginning with 00 00 08 01, expected 00 00 08 03"),
        (labels, gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 1, 3))), "found 3 pictures and 1 labels"),
    ]
    for path, content, found in broken:
        kept = path.read_bytes()
        path.write_bytes(content)
        assert command()(["build", "fashion_mnist", f"--source={raw}", f"--data_dir={tmp_path / 'again'}", "--option=held_out=2"]) == 1
        assert found in capsys.readouterr().err
        path.write_bytes(kept)
    labels.write_bytes(gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 3, 3, 10, 0))))
    assert len(build("fashion_mnist", raw, tmp_path / "ten", "--option=held_out=2")["test"]) == 2
    assert '"found": "10", "expected": "0 to 9"' in (tmp_path / "ten" / "fashion_mnist" / "rejects.jsonl").read_text()


def test_codes_of_whole_pictures_beside_captions(tmp_path: Path) -> None:
    """What text-to-image generation learns from: 32 x 32 codes of a picture at 256 px."""
    write_coco(tmp_path / "coco")
    build("coco_karpathy", tmp_path / "coco", tmp_path / "data", "--option=splits=train,validation=val")
    options = CodeOptions("some digest", num_codes=8192, stride=8, image_px=256, area="whole")

    def encode(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (256, 256, 3)
        return images[:, ::8, ::8, 0].astype(np.int32) * 32

    write_codes(tmp_path / "data", "coco_karpathy", encode, options, batch=2, progress=lambda _: None)
    records = open_records(tmp_path / "data", "coco_karpathy", "train", codes="whole")
    for record in (records[0], records[1]):
        assert record.captions and record.codes.shape == (1024,) and record.codes.max() < 8192


def tables(folder: Path) -> None:
    """Tables of OFA's tasks with the columns that its README shows."""
    image = encoded(jpeg(1), url_safe=True)
    write_tsv(folder / "caption_train.tsv", [("162365", "12455", "the sun sets", "sky&&water", image)])
    write_tsv(folder / "caption_val.tsv", [("5", "12456", "a dog&&a brown dog", "", image), ("6", "1", "", "", image)])
    write_tsv(folder / "refcoco_val.tsv", [("79_1", "237367", "a woman in white", "1.5,2,20,29.5", image)])
    write_tsv(folder / "vqa_train.tsv", [("79459", "79460", "is it red?", "0.3|!+yes&&0.6|!+no", "house&&sky", image)])
    rows = [("1", "2", "what?", listed, "", image) for listed in ("1.0|!+a cat", "0.3|!+yes&&0.9|!+a cat&&0.6|!+no")]
    write_tsv(folder / "vqa_val.tsv", rows)
    (folder / "answers.txt").write_text("yes\nno\n")
    row = ("252244149.jpg#1r1n", "252244149", image, "a man chews.", "a man in pink.")
    write_tsv(folder / "snli_ve_dev.tsv", [(*row, "neutral "), (*row, "2")])
    write_tsv(folder / "imagenet_1k_val.tsv", [(image, "769", "rugby ball")])
    write_tsv(folder / "gigaword_train.tsv", [("factory orders rose #.# percent", "us factory orders up #.# percent"), ("", "nothing")])


def test_ofas_own_tables(tmp_path: Path) -> None:
    tables(tmp_path)
    data = tmp_path / "data"

    def made_of(layout: str, *splits: str, row: str = "") -> dict[str, list[Any]]:
        flags = [f"--dataset={layout}_made", f"--option=splits={','.join(splits)}", *([f"--row={row}"] if row else [])]
        return build(layout, tmp_path, data, *flags)

    made = made_of("ofa_captions", "train=caption_train.tsv", "validation=caption_val.tsv", row="caption")
    (one,), (two,) = made["train"], made["validation"]
    assert (one.record_id, one.captions, one.image) == ("caption_train@0/12455", (Caption("the sun sets"),), jpeg(1))
    assert two.captions == (Caption("a dog"), Caption("a brown dog"))
    assert LAYOUTS["ofa_captions"](str(tmp_path), "x").picture_key(one.record_id) == "coco/12455"
    (one,) = made_of("ofa_referring", "validation=refcoco_val.tsv", row="grounding")["validation"]
    assert (one.record_id, one.regions) == ("refcoco_val@0/237367", (Region("a woman in white", Box(1.5, 2, 20, 29.5)),))
    (one,) = made_of("ofa_vqa", "train=vqa_train.tsv", row="question")["train"]
    assert (one.record_id, one.questions[0].answer, one.questions[0].question_id) == ("vqa_train@0/79460", "no", 79459)
    assert one.questions[0].confidence == pytest.approx(0.6) and one.questions[0].objects == ("house", "sky")
    assert [(answer, round(weight, 3)) for answer, weight in one.questions[0].targets] == [("yes", 0.3), ("no", 0.6)]
    flags = ["--row=answer", "--option=answers_file=answers.txt", "--option=splits=validation=vqa_val.tsv"]
    (one,) = build("ofa_vqa", tmp_path, data, "--dataset=closed", *flags)["validation"]
    assert one.questions[0].answer == "no" and [answer for answer, _ in one.questions[0].targets] == ["yes", "no"]
    assert one.questions[0].objects == ()
    assert load_json(data / "closed" / "manifest.json")["rejects"] == {"read/closed_set": 2, "read/no_answer": 1}
    (one,) = made_of("ofa_snli_ve", "validation=snli_ve_dev.tsv", row="question")["validation"]
    assert one.captions == (Caption("a man in pink."),) and one.questions == (Question("a man chews.", "neutral", kind="entailment"),)
    assert load_json(data / "ofa_snli_ve_made" / "manifest.json")["rejects"] == {"read/empty": 1, "read/label": 1}
    (one,) = made_of("ofa_imagenet", "validation=imagenet_1k_val.tsv", row="caption")["validation"]
    assert (one.record_id, one.captions) == ("imagenet_1k_val@0", (Caption("rugby ball"),))
    (one,) = made_of("ofa_gigaword", "train=gigaword_train.tsv")["train"]
    assert (one.text, one.text2, one.answer) == ("factory orders rose #.# percent", "", "us factory orders up #.# percent")
    assert load_json(data / "ofa_gigaword_made" / "manifest.json")["rejects"] == {"read/empty_text": 1}


def test_splits_of_ofas_tables_have_names_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--source={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--dataset=x", "--option=splits=caption_train.tsv"]
    assert command()(["build", "ofa_gigaword", *flags]) == 1
    assert "option splits: found 'caption_train.tsv', expected name=file" in capsys.readouterr().err
