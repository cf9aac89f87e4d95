"""Public files to shards: what is kept, what is listed as left out, and that nothing depends on workers, interruptions or the folder."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from made_tars import caption, members, picture, write_tars
from PIL import Image

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.records import ImageRecord, load_json, open_records
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare import build_flags
from ofa_jax.prepare.evaluation_pictures import write_table
from ofa_jax.prepare.layouts.refcoco import RefCoco
from ofa_jax.prepare.layouts.webdataset import WebDataset
from ofa_jax.prepare.lengths import LengthCounter
from ofa_jax.prepare.passes.build import build
from ofa_jax.prepare.passes.options import BuildOptions, Described
from ofa_jax.prepare.passes.runner import RunnerOptions
from ofa_jax.vocab.tokenizer import load_tokenizer
from tests.prepare.layouts.annotated_fixtures import write_refcoco

ROOT = Path(__file__).parents[3]
TARS, SAMPLES = 3, 12


def options(source: Path, **more) -> BuildOptions:
    dataset = more.pop("dataset", "pairs")
    return BuildOptions(WebDataset(str(source), dataset), "caption", Described("made up", "none"), **({"max_shard_records": 14} | more))


def run(source: Path, data_dir: Path, *, workers: int = 1, rebuild: bool = False, **more) -> tuple[Path, list[str]]:
    said: list[str] = []
    folder = build(options(source, **more), data_dir=data_dir, runner=RunnerOptions(workers=workers), rebuild=rebuild, progress=said.append)
    return folder, said


def digests(folder: Path) -> dict[str, str]:
    """Returns the digest of everything that readers of a data set see."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}


def rejects(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["record"]: line for line in map(json.loads, lines)}


def spoil(tar: int, sample: int, found: dict[str, bytes]) -> dict[str, bytes]:
    """What goes wrong in downloads: half a picture, no picture, no text, an empty text, the same sample twice."""
    if (tar, sample) == (0, 3):
        return found | {"jpg": found["jpg"][: len(found["jpg"]) // 2]}
    if (tar, sample) == (0, 5):
        return {"json": b'{"status": "failed_to_download"}'}
    if (tar, sample) == (1, 2):
        return found | {"txt": b"\xff\xfe not text"}
    if (tar, sample) == (1, 4):
        return found | {"txt": b"  "}
    if (tar, sample) == (2, 6):
        return members(0, 1) | {"json": found["json"]}
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tars(tmp_path_factory.mktemp("tars"), tars=TARS, samples=SAMPLES, change=spoil)


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> tuple[Path, list[str]]:
    return run(source, tmp_path_factory.mktemp("data"))


LEFT_OUT = {
    "00000/000000003": ("index", "image", "does not decode"),
    "00000/000000005": ("read", "image", "members json and the status 'failed_to_download'"),
    "00001/000010002": ("read", "schema", "bytes that are no UTF-8"),
    "00001/000010004": ("read", "empty", "no usable annotation"),
    "00002/000020006": ("decide", "duplicate_content", "the picture and annotations of 00000/000000001 in 00000"),
}


def test_every_sample_is_kept_or_listed_with_its_reason(built):
    folder, said = built
    listed = rejects(folder)
    for record, (stage, reason, found) in LEFT_OUT.items():
        assert (listed[record]["stage"], listed[record]["reason"]) == (stage, reason), listed[record]
        assert found in listed[record]["found"], listed[record]
    assert set(listed) == set(LEFT_OUT)
    source = open_records(folder.parent, "pairs", "train")
    names = [source[place].record_id for place in range(len(source))]
    every = [f"{tar:05d}/{tar:05d}{sample:04d}" for tar in range(TARS) for sample in range(SAMPLES)]
    assert names == [name for name in every if name not in LEFT_OUT]
    assert sum(load_json(folder / "manifest.json")["rejects"].values()) == 6  # the empty text is listed for its caption, and as empty
    assert any("31 of 33 records stay" in line or "31 of" in line for line in said), said


def test_records_are_those_of_the_tars_and_tfds_opens_them(built):
    folder, _ = built
    record = open_records(folder.parent, "pairs", "train")[1]
    assert isinstance(record, ImageRecord)
    assert record.image == members(0, 1)["jpg"] and (record.width, record.height) == (160, 120)
    assert [c.text for c in record.captions] == [caption(0, 1)]
    opened = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    assert len(opened) == 31
    assert opened[1]["captions"]["text"] == [caption(0, 1).encode()]
    np.testing.assert_array_equal(opened[1]["image"], decode_image(record.image))


def test_manifest_negatives_and_lengths_say_what_is_there(built):
    folder, _ = built
    manifest = load_json(folder / "manifest.json")
    shards = manifest["splits"]["train"]["shards"]
    assert [shard["records"] for shard in shards] == [10, 10, 11]
    for shard in shards:
        data = (folder / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    source = open_records(folder.parent, "pairs", "train")
    counter = LengthCounter("caption", dataset="pairs", vocab=VocabConfig(), tokenizer=load_tokenizer(VocabConfig()))
    lengths = source.sequence_lengths("caption")
    assert manifest["tasks"] == list(counter.tasks) == ["captioning", "matching"]
    np.testing.assert_array_equal(lengths, [counter.count(source[place]) for place in range(len(source))])
    assert manifest["token_lengths"]["tokenizer"] == load_tokenizer(VocabConfig()).digest
    assert sum(manifest["token_lengths"]["fields"]["captioning/target"].values()) == 31
    assert manifest["row"] == "caption" and manifest["licence"] == "none" and manifest["options"]["layout"]["name"] == "WebDataset"
    negatives = load_json(folder / "negatives.json")
    kept = {source[place].captions[0].text for place in range(len(source))}
    assert kept <= set(negatives["captions"]) and negatives["answers"] == {}


def test_bytes_do_not_depend_on_workers_or_on_where_the_files_lie(source, built, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(source, moved)
    folder, _ = run(moved, tmp_path, workers=2)
    assert digests(folder) == digests(built[0])


def test_a_finished_folder_is_not_made_again_and_other_options_are_refused(source, built):
    folder, _ = built
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run(source, folder.parent)[1] == [f"{folder}: already prepared"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match=r"prepared with other options \(.*square_px: 0 there, 64 now.*--rebuild"):
        run(source, folder.parent, square_px=64)


def test_what_is_there_stays_and_what_is_missing_is_made(source, built, tmp_path):
    """As after a kill: some files of each pass are there, one half written under another name."""
    folder, _ = run(source, tmp_path)
    whole = digests(folder)
    (folder / "manifest.json").unlink()
    shards = sorted(folder.glob("*.array_record-*"))
    (folder / "passes" / "written" / f"{shards[1].name}.json").unlink()
    shards[1].write_bytes(b"half")
    (folder / f".{shards[1].name}.123.partial").write_bytes(b"half")
    (folder / "passes" / ".gathered.partial").mkdir()
    (folder / "passes" / ".gathered.partial" / "train-00000.jsonl").write_bytes(b"half")
    kept = shards[0].stat().st_mtime_ns
    _, said = run(source, tmp_path)
    assert digests(folder) == whole == digests(built[0])
    assert shards[0].stat().st_mtime_ns == kept
    assert any("write: going on, 2 of 3 are there" in line for line in said), said
    assert not list(folder.rglob("*.partial"))
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"unfinished work of other options \(.*max_shard_records: 14 there, 5 now"):
        run(source, tmp_path, max_shard_records=5)
    _, said = run(source, tmp_path, max_shard_records=5, rebuild=True)
    assert [s["records"] for s in load_json(folder / "manifest.json")["splits"]["train"]["shards"]] == [5, 5, 5, 5, 3, 4, 4]


def test_an_input_that_changed_between_the_passes_is_named(source, tmp_path):
    own = tmp_path / "tars"
    shutil.copytree(source, own)
    folder, _ = run(own, tmp_path)
    (folder / "manifest.json").unlink()
    for note in (folder / "passes" / "written").glob("*.json"):
        note.unlink()
    write_tars(own, tars=1, samples=SAMPLES - 4)
    with pytest.raises(DataError, match=r"00000.tar: found .*expected .*the file has changed"):
        run(own, tmp_path)


def test_a_truncated_tar_gives_its_whole_samples_and_says_where_it_ends(source, tmp_path):
    own = tmp_path / "tars"
    shutil.copytree(source, own)
    data = (own / "00001.tar").read_bytes()
    (own / "00001.tar").write_bytes(data[: len(data) // 2])
    folder, _ = run(own, tmp_path)
    listed = rejects(folder)
    ends = [line for line in listed.values() if "a tar that is cut or damaged after byte" in line["found"]]
    assert len(ends) == 1 and ends[0]["input"] == "00001" and "00001.tar whole" in ends[0]["expected"]
    kept = load_json(folder / "manifest.json")["splits"]["train"]["records"]
    assert 31 - 10 < kept < 31


def test_pictures_of_evaluation_sets_are_kept_out(source, built, tmp_path):
    """Two pictures of the training tars are in an evaluation set, smaller, encoded again and cropped by a little."""

    def evaluation(tar: int, sample: int, found: dict[str, bytes]) -> dict[str, bytes]:
        pixels = picture(tar + 100, sample)
        if sample in (1, 4):
            pixels = picture(2, sample)[3:-2, 4:-3]
        pixels = np.ascontiguousarray(pixels[::1, ::1])
        return found | {"jpg": simplejpeg.encode_jpeg(pixels, 60), "txt": b"another caption"}

    own = write_tars(tmp_path / "evaluation", tars=1, samples=6, change=evaluation)
    run(own, tmp_path, dataset="held_out", drop_duplicates=False)
    with pytest.raises(DataError, match=r"pictures-train.npz is missing, expected the pictures of held_out/train.*prepare.py pictures"):
        run(source, tmp_path, against=("held_out/train",))
    write_table(tmp_path, "held_out", "train", progress=lambda _: None)
    folder, said = run(source, tmp_path, against=("held_out/train",))
    leaks = {record: line for record, line in rejects(folder).items() if line["reason"] == "leak"}
    assert set(leaks) == {"00002/000020001", "00002/000020004"}
    assert "the picture of held_out/train/00000/000000001 by its perceptual hash, which differs in" in leaks["00002/000020001"]["found"]
    assert load_json(folder / "manifest.json")["splits"]["train"]["records"] == 29
    assert any("compare with held_out/train" in line for line in said)


def test_pictures_are_stored_as_asked(source, tmp_path):
    run(source, tmp_path, square_px=64)
    record = open_records(tmp_path, "pairs", "train")[0]
    assert (record.width, record.height) == (64, 64) and decode_image(record.image).shape == (64, 64, 3)
    _folder, _ = run(source, tmp_path, dataset="small", max_side_px=80)
    record = open_records(tmp_path, "small", "train")[0]
    assert (record.width, record.height) == (80, 60)


def test_nothing_usable_and_nothing_there_are_errors(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"pairs: found no \*\*/\*.tar in .*empty, expected them as https://github.com/rom1504/img2dataset"):
        run(empty, tmp_path)
    spoilt = write_tars(tmp_path / "tars", tars=1, samples=2, change=lambda tar, sample, found: {"txt": b"x"})
    with pytest.raises(DataError, match="found no usable record in split train; all are listed in rejects.jsonl"):
        run(spoilt, tmp_path / "b")


def test_the_command_as_the_readme_has_it(source, tmp_path):
    flags = [f"--source={source}", f"--data_dir={tmp_path}", "--leak_bits=40"]
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "build", "cc3m", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'cc3m'}: 31 records in 1 shards"
    wrong = subprocess.run([*command[:-3], "--option=patern=x", *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "found no field 'patern' of WebDataset; did you mean pattern?" in wrong.stderr


def test_the_commands_that_read_what_was_built(built, tmp_path):
    """The table of an evaluation set's pictures, and length classes for a config's blocks from the prepared lengths."""
    folder, _ = built
    config = tmp_path / "small.py"
    config.write_text(
        "import dataclasses\n"
        "from configs.ofa_tiny import get_config as tiny\n"
        "from ofa_jax.config.schema import BlockConfig, DataConfig, LengthClass, SourceConfig\n"
        "def get_config(arg=''):\n"
        "    classes = (LengthClass(8, (8, 20), (8, 2)), LengthClass(8, (128,), (64,)))\n"
        "    block = BlockConfig('pairs', 'pairs', 16, 128, 64, (SourceConfig('pairs', 'caption'),), image_px=256, classes=classes)\n"
        f"    return dataclasses.replace(tiny(), data=DataConfig(dir={str(folder.parent)!r}, blocks=(block,)))\n"
    )
    said: list[str] = []
    parser = argparse.ArgumentParser()
    build_flags.add_commands(parser.add_subparsers(dest="command"))
    build_flags.run_classes(parser.parse_args(["classes", f"--config={config}", "--multiple=2"]), said.append)
    assert re.fullmatch(r"pairs: 0\.9\d+ of all positions are of use, 0\.\d+ of those of texts", said[0]), said
    assert [line.strip().split("(")[1].split(",")[0] for line in said[1:]] == ["8", "8"] and all(
        "LengthClass(" in line for line in said[1:]
    )
    build_flags.run_pictures(
        parser.parse_args(["pictures", f"--data_dir={folder.parent}", "--dataset=pairs", "--split=train"]), said.append
    )
    assert said[-1] == f"{folder / 'pictures-train.npz'}: 31 pictures"
    (folder / "pictures-train.npz").unlink()
    with pytest.raises(ConfigError, match=r"build: found the name 'cc4m'; did you mean cc3m\?"):
        build_flags.run_build(parser.parse_args(["build", "cc4m", "--source=x"]), said.append)
    with pytest.raises(ConfigError, match="build table: found no --dataset or no --row, expected both with a layout"):
        build_flags.run_build(parser.parse_args(["build", "table", "--source=x"]), said.append)


def test_own_tables_are_built_with_the_names_of_their_columns(tmp_path):
    source = tmp_path / "mine"
    (source / "pictures").mkdir(parents=True)
    for number in range(3):
        (source / "pictures" / f"{number}.jpg").write_bytes(members(5, number)["jpg"])
    rows = [{"file": f"pictures/{number}.jpg", "said": f"picture {number}", "name": f"p{number}"} for number in range(3)]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = argparse.ArgumentParser()
    build_flags.add_commands(parser.add_subparsers(dest="command"))
    flags = [f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--dataset=mine", "--row=caption", "--licence=ours"]
    options = ["--option=image=file", "--option=caption=said", "--option=id=name"]
    build_flags.run_build(parser.parse_args(["build", "table", *flags, *options]), lambda line: None)
    found = open_records(tmp_path / "data", "mine", "train").read(range(3))
    assert [(record.record_id, record.captions[0].text) for record in found] == [(f"p{number}", f"picture {number}") for number in range(3)]
    assert load_json(tmp_path / "data" / "mine" / "manifest.json")["licence"] == "ours"


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_folder_of_other_files_is_never_touched(source, tmp_path, rebuild):
    """As when the raw files lie where the data set would go."""
    raw = tmp_path / "pairs" / "raw.tar"
    raw.parent.mkdir()
    raw.write_bytes(b"of value")
    with pytest.raises(DataError, match="found files of another origin, expected an empty folder"):
        run(source, tmp_path, rebuild=rebuild)
    assert raw.read_bytes() == b"of value"


def test_splits_may_share_pictures_and_are_built_together(tmp_path):
    """RefCOCO's splits by references: a picture may be in two of them, with other regions."""
    write_refcoco(tmp_path / "raw")
    layout = RefCoco(str(tmp_path / "raw"), "refs", splits=("train", "validation=val"))
    options = BuildOptions(layout, "grounding", Described("made up", "none"))
    build(options, data_dir=tmp_path, runner=RunnerOptions(), progress=lambda line: None)
    manifest = load_json(tmp_path / "refs" / "manifest.json")
    assert list(manifest["splits"]) == ["train", "validation"]
    for split in ("train", "validation"):
        source = open_records(tmp_path, "refs", split)
        assert len(source) == manifest["splits"][split]["records"] > 0
        assert len(source.sequence_lengths("grounding")) == len(source)
    assert sorted(tfds.builder_from_directory(str(tmp_path / "refs")).info.splits) == ["train", "validation"]


def test_pictures_that_viewers_turn_stay_as_they_are_stored_and_are_told(tmp_path):
    """Boxes are pixels of the stored picture; a person should know all the same that some lie on their side."""

    def turned(tar: int, sample: int, found: dict[str, bytes]) -> dict[str, bytes]:
        if sample not in (2, 3):
            return found
        exif = Image.Exif()
        exif[274] = 6 if sample == 2 else 1
        file = io.BytesIO()
        Image.open(io.BytesIO(found["jpg"])).save(file, "JPEG", exif=exif)
        return found | {"jpg": file.getvalue()}

    folder, said = run(write_tars(tmp_path / "tars", tars=1, samples=5, change=turned), tmp_path)
    [line] = [json.loads(line) for line in (folder / "notices.jsonl").read_text().splitlines()]
    assert (line["record"], line["reason"], line["found"]) == ("00000/000000002", "exif_orientation", "EXIF orientation 6")
    assert load_json(folder / "manifest.json")["notices"] == {"exif_orientation": 1}
    assert any("1 with exif_orientation, listed in notices.jsonl" in words for words in said)
    record = open_records(folder.parent, "pairs", "train")[2]
    assert (record.width, record.height) == (160, 120)
    np.testing.assert_array_equal(decode_image(record.image), np.asarray(Image.open(io.BytesIO(record.image))))
