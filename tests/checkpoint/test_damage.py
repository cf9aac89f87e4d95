"""Whatever happens to the files of a checkpoint is found before its arrays are used."""

import json
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.checkpoint.about import FORMAT
from ofa_jax.checkpoint.folders import COMMIT_MARKER
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, DamagedError
from ofa_jax.config.schema import RunConfig
from ofa_jax.config.sizes import SIZES

CONFIG = RunConfig(name="c", model=SIZES["nano"])


@pytest.fixture
def folder(tmp_path):
    state = {
        "params": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((64, 64), np.float32))},
        "opt_state": {"mu": jnp.ones((64, 64))},
        "stats": {"mean": jnp.zeros(8)},
        "step": jnp.int32(1),
        "data_step": jnp.int32(1),
    }
    manager = CheckpointManager(tmp_path)
    manager.save(1, state, config=CONFIG, identity={"tokenizer": "t"}, wait=True)
    manager.close()
    return tmp_path / "checkpoints" / "1"


def damage(folder):
    return CheckpointManager(folder.parents[1], read_only=True).damage(1)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << 4
    path.write_bytes(content)


def test_a_whole_checkpoint_is_not_damaged(folder):
    assert damage(folder) == ""


def test_a_flipped_bit_in_any_file_is_found(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert any(path.stat().st_size > 10_000 and "params" in str(path) for path in paths), "the arrays"
    draw = random.Random(0)
    for path in paths:
        if path.parent == folder and path.name in (COMMIT_MARKER, "_CHECKPOINT_METADATA"):
            continue
        for place in (0, draw.randrange(path.stat().st_size), path.stat().st_size - 1):
            if path.name == "digests.json" and chr(path.read_bytes()[place]).isspace():
                continue  # its last byte ends the line and says nothing
            flip(path, place)
            assert damage(folder), (path, place)
            flip(path, place)
    assert damage(folder) == ""


def test_a_flipped_bit_in_what_the_checkpoint_says_of_itself_is_found(folder):
    path = folder / "_CHECKPOINT_METADATA"
    text = path.read_bytes()
    start, end = text.index(b'"custom_metadata"'), text.rindex(b"consents")
    for place in random.Random(0).sample(range(start, end), 60):
        if not chr(text[place]).isspace():
            flip(path, place)
            assert damage(folder), text[place - 20 : place + 20]
            flip(path, place)
    assert damage(folder) == ""


@pytest.mark.parametrize("part", ["params", "opt_state", "stats", "counters"])
def test_a_missing_part_is_found(folder, part):
    shutil.rmtree(folder / part)
    assert f"{part}/" in damage(folder)


def test_truncated_and_missing_files_are_found_and_named(folder):
    (array,) = (path for path in (folder / "params").rglob("d/*") if path.stat().st_size > 10_000)
    size = array.stat().st_size
    content = array.read_bytes()
    array.write_bytes(content[:-1])
    name = str(array.relative_to(folder))
    assert damage(folder) == f"{name}: found {size - 1} bytes, expected {size}"
    array.unlink()
    assert damage(folder) == f"{name}: found no file, expected {size} bytes"
    array.write_bytes(content)
    (folder / "digests.json").unlink()
    assert damage(folder) == "found no digests.json, expected the list of its files"


def test_evaluation_refuses_damaged_parameters_and_reads_no_other_part(folder):
    manager = CheckpointManager(folder.parents[1], read_only=True)
    flip(max((folder / "opt_state").rglob("d/*"), key=lambda path: path.stat().st_size), 1000)
    manager.restore_params()
    array = max((folder / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(array, 1000)
    with pytest.raises(DamagedError, match=r"checkpoints/1: the checkpoint is damaged \(params/.*its bytes changed after it was saved"):
        manager.restore_params()


def test_a_checkpoint_of_a_newer_format_is_not_damaged_but_refused(folder):
    from ofa_jax.checkpoint.digests import about_digest

    path = folder / "_CHECKPOINT_METADATA"
    said = json.loads(path.read_text())
    said["custom_metadata"] |= {"format": FORMAT + 1, "versions": {"ofa_jax": "9.9"}}
    path.write_text(json.dumps(said))
    digests = json.loads((folder / "digests.json").read_text())
    digests["about"] = about_digest(said["custom_metadata"])
    (folder / "digests.json").write_text(json.dumps(digests))
    assert damage(folder) == ""
    with pytest.raises(CheckpointError, match=rf"format: found {FORMAT + 1}, expected at most {FORMAT}; it was written by ofa_jax 9\.9"):
        CheckpointManager(folder.parents[1], read_only=True).config()


def test_a_folder_is_moved_aside_as_often_as_it_takes(folder):
    manager = CheckpointManager(folder.parents[1])
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    assert manager.move_aside(1).name == "1.damaged"
    copy.rename(folder)
    assert manager.move_aside(1).name == "1.damaged-1"
    assert (manager.steps(), manager.moved_aside()) == ([], ["1.damaged", "1.damaged-1"])
    state = {"params": {"a": jnp.ones(3)}, "opt_state": {"b": jnp.ones(3)}, "step": jnp.int32(1), "data_step": jnp.int32(1)}
    manager.save(1, state, config=CONFIG, wait=True)  # the step can be written again
    assert manager.steps() == [1]
    manager.close()
    assert manager.moved_aside() == ["1.damaged", "1.damaged-1"]
