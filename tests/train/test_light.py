"""Runs whose checkpoints hold only what is trained: they go on to the bit, from small files, and know the checkpoint they lie over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from configs.ofa_base import get_config
from ofa_jax.checkpoint.base import digest_of
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.checkpoint.trees import walk
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.load import run_folder
from ofa_jax.config.parameters import is_named
from ofa_jax.config.schema import CheckpointConfig, InitConfig, MeshConfig, RunConfig
from ofa_jax.convert.transfer import describe, restore, write_whole
from ofa_jax.models.lora import merged
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.pods.program import checkpoint_bytes
from ofa_jax.train.hooks import Hook
from ofa_jax.train.initial import take_parameters
from ofa_jax.train.light import base_of_resumed, new_base
from ofa_jax.train.loop import train
from ofa_jax.train.state import abstract_state, init_state, state_shardings, with_shardings

pytestmark = pytest.mark.usefixtures("compiled_programs")
# An average, which differs from the parameters; texts alone, which compile in less time. What a picture changes is in the full tier.
WHOLE = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]), checkpoint=CheckpointConfig(2, 0.0, 2), steps=4
)
PICTURES = dataclasses.replace(WHOLE, data=dataclasses.replace(WHOLE.data, blocks=BLOCKS[:1]))


def lora(base: Path, workdir: Path, content: str = "trained", *, like: RunConfig = WHOLE, **model) -> RunConfig:
    """A run of LoRA over `base`."""
    return dataclasses.replace(
        like,
        name=content,
        workdir=str(workdir / "{name}"),
        model=dataclasses.replace(like.model, lora_rank=2, **model),
        optimizer=dataclasses.replace(like.optimizer, trained=("**/lora",)),
        checkpoint=dataclasses.replace(like.checkpoint, content=content),
        init=InitConfig(str(base)),
    )


class StopAt(Hook):
    """Asks the run to stop, as a signal does, while it is at `step`."""

    def __init__(self, step: int):
        self.step = step

    def phase(self, step: int, phase: str) -> None:
        if step == self.step and phase == "data":
            os.kill(os.getpid(), signal.SIGTERM)


def run(config: RunConfig, *, hooks=(), allow=()):
    return train(config, Batches(config), hooks, task_names=TASK_NAMES, devices=jax.devices()[:1], allow=allow)


def equal(a, b) -> bool:
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def start_of(config: RunConfig):
    """The state that a new run begins with."""
    return take_parameters(config, init_state(config, one_device(config)))[0]


def one_device(config: RunConfig) -> Mesh:
    return make_mesh(config.mesh, devices=jax.devices()[:1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def saved_bytes(checkpoint: Path) -> dict[str, int]:
    """Bytes of arrays that a checkpoint holds, by part."""
    reader = CheckpointReader(checkpoint.parents[1])
    sizes: dict[str, int] = {}
    for name, leaf in walk(reader._metadata(int(checkpoint.name)).metadata).items():
        part = name.split("/")[0]
        sizes[part] = sizes.get(part, 0) + int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    return sizes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run that kept its state at step 7, with an average of its own."""
    folder = tmp_path_factory.mktemp("base") / "base"
    state = init_state(dataclasses.replace(WHOLE, seed=5), one_device(WHOLE))
    state = dataclasses.replace(
        state, ema=jax.tree.map(lambda p: p * 1.125, state.params), stats=jax.tree.map(lambda s: s + 0.5, state.stats)
    )
    manager = CheckpointManager(folder)
    manager.save(7, state, config=WHOLE, wait=True)
    manager.close()
    return folder


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """(folder, the state a run that saves everything came to, that of one that saves what is trained and was stopped and went on)."""
    folder = tmp_path_factory.mktemp("runs")
    whole = run(lora(base, folder, "all")).state
    config = lora(base, folder)
    assert run(config, hooks=[StopAt(2)]).stopped
    return folder, jax.device_get(whole), jax.device_get(run(config).state)


@pytest.fixture
def stopped(runs, tmp_path):
    """The second run as it was when it was stopped: its config's `workdir`."""
    shutil.copytree(runs[0] / "trained", tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained" / "checkpoints" / "4")
    return tmp_path


def test_a_run_that_was_stopped_goes_on_to_the_bit_of_one_that_saves_everything(runs):
    folder, whole, light = runs
    assert equal(whole, light)
    for run_of in ("all", "trained"):
        reader = CheckpointReader(folder / run_of)
        assert reader.steps()[-1] == 4
    (both,) = {json.dumps(CheckpointReader(folder / name).about().facts) for name in ("all", "trained")}
    assert json.loads(both)["data_step"] == 4


def test_what_is_saved_is_what_is_trained(runs):
    folder, state, _ = runs
    learns = sum(leaf.nbytes for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0] if "lora" in key_path_parts(path))
    found = saved_bytes(folder / "trained" / "checkpoints" / "4")
    assert found["params"] == found["ema"] == learns
    assert found["opt_state"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)) <= 2 * learns + 16
    assert found["stats"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.stats)), "with pictures they change"
    assert checkpoint_bytes(lora(Path("base"), folder)) == sum(found.values()), "as the doctor foresees"
    whole = saved_bytes(folder / "all" / "checkpoints" / "4")
    assert whole["params"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))


def test_a_checkpoint_of_a_real_size_is_a_hundredth():
    config = lora(Path("base"), Path("runs"), "all", like=get_config())
    light = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, content="trained"))
    assert checkpoint_bytes(light) < 0.01 * checkpoint_bytes(config)


def test_evaluation_reads_the_same_of_both(runs, base):
    folder, state, _ = runs
    found = [CheckpointReader(folder / name).restore_params() for name in ("all", "trained")]
    assert found[0].averaged and found[1].averaged and equal(found[0].params, found[1].params) and equal(found[0].stats, found[1].stats)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (state.params, state.stats))
    shaped = CheckpointReader(folder / "trained").restore_params(*shapes)
    assert equal(shaped.params, state.ema) and equal(shaped.stats, state.stats)
    paths = [CheckpointReader(folder / name).parameter_shapes() for name in ("all", "trained")]
    assert paths[0] == paths[1] and len(paths[0]) == len(jax.tree.leaves(state.params))


def test_a_checkpoint_says_what_it_lies_over(runs, base):
    folder = runs[0]
    found = CheckpointReader(folder / "trained").about().base
    assert (found.path, found.step, found.digest) == (str(base), 7, digest_of(base / "checkpoints" / "7"))
    assert not found.stats and not any("lora" in name.split("/") for name in found.params)
    assert CheckpointReader(folder / "trained").find_base() == base / "checkpoints" / "7"
    assert CheckpointReader(folder / "all").about().base is None and CheckpointReader(folder / "all").find_base() is None
    assert f"what was trained, over step 7 of {base} (digest {found.digest[:12]})" in describe(folder / "trained")


@pytest.mark.full
@pytest.mark.parametrize("image_norm", ["batch", "frozen"])
def test_statistics_that_change_are_saved_and_others_are_left(base, tmp_path, image_norm):
    config = lora(base, tmp_path, like=PICTURES, image_norm=image_norm)
    expected = jax.device_get(run(lora(base, tmp_path, "all", like=PICTURES, image_norm=image_norm)).state)
    assert run(config, hooks=[StopAt(2)]).stopped and equal(run(config).state, expected)
    there = CheckpointReader(base).restore_params()
    assert equal(expected.stats, there.stats) == (image_norm == "frozen")
    folder = run_folder(config)
    assert ("stats" in saved_bytes(folder / "checkpoints" / "4")) == (image_norm == "batch") != CheckpointReader(folder).about().base.stats
    assert equal(CheckpointReader(folder).restore_params().stats, expected.stats)


def test_frozen_statistics_are_those_of_the_base(base, tmp_path):
    config = lora(base, tmp_path, image_norm="frozen")
    found, state = new_base(config, abstract_state(config)), start_of(config)
    assert found.stats
    manager = CheckpointManager(tmp_path / "trained", base=str(base))
    manager.save(1, state, config=config, base=found, wait=True)
    manager.close()
    assert "stats" not in saved_bytes(tmp_path / "trained" / "checkpoints" / "1")
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    assert manager.missing_parts(wanted, step=1) == ()
    assert equal(manager.restore(wanted, step=1), state) and equal(manager.restore_params().stats, state.stats)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:8])
    spread = manager.restore(with_shardings(abstract_state(config), shardings := state_shardings(config, mesh)), step=1)
    assert equal(spread, state) and all(jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding == s, spread, shardings)))


def test_a_base_that_moved_is_found_by_its_new_place(stopped, runs, base, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(base, moved)
    gone = base.with_name("gone")
    base.rename(gone)
    try:
        config = lora(base, stopped)
        with pytest.raises(
            CheckpointError,
            match=rf"trained/checkpoints/3 holds only what was trained, over step 7 of {base} \(digest .*\): found no complete checkpoint "
            rf"at {base}/checkpoints/7, expected that very checkpoint; if it was moved, --config.init.checkpoint=PLACE",
        ):
            run(config)
        reader = CheckpointReader(stopped / "trained", base=f"{moved}/checkpoints/7")
        assert reader.restore_params().step == 3
        assert equal(run(dataclasses.replace(config, init=InitConfig(str(moved)))).state, runs[1])
        assert f"changed, free: init.checkpoint: '{base}' -> '{moved}'" in capsys.readouterr().out
        reader = CheckpointReader(stopped / "trained")
        assert reader.steps() == [3, 4] and reader.about().base.path == str(moved), "the newest knows the new place"
    finally:
        gone.rename(base)


def test_another_checkpoint_is_not_taken_for_the_base(stopped, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    listed = other / "checkpoints" / "7" / "digests.json"
    listed.write_text(listed.read_text() + "\n")
    config = dataclasses.replace(lora(base, stopped), init=InitConfig(str(other)))
    with pytest.raises(CheckpointError, match=rf"found another one at {other}/checkpoints/7, of digest .*, expected that very checkpoint"):
        run(config)
    assert CheckpointReader(stopped / "trained").steps() == [3], "nothing was moved aside"
    assert CheckpointReader(stopped / "trained", base=str(other)).restore_params().step == 3, "to be read it is where it was"


def test_a_damaged_light_checkpoint_gives_way_to_the_one_before(base, runs, tmp_path, capsys):
    shutil.copytree(runs[0] / "trained", tmp_path / "trained")
    flip(largest(tmp_path / "trained" / "checkpoints" / "4" / "params"))
    result = run(lora(base, tmp_path))
    assert "moved aside as 4.damaged" in capsys.readouterr().out
    assert equal(result.state, runs[1]), "from step 3 on it is the same run"


def test_a_damaged_base_is_said_and_nothing_is_moved_aside(stopped, base):
    array = largest(base / "checkpoints" / "7" / "ema")
    flip(array)
    try:
        for read in (lambda: run(lora(base, stopped)), lambda: CheckpointReader(stopped / "trained").restore_params()):
            with pytest.raises(
                CheckpointError,
                match=r"trained/checkpoints/3 holds only what was trained, over step 7 of .*base/checkpoints/7: the checkpoint is damaged "
                r"\(ema/.*its bytes changed after it was saved\); bring that one back from a copy",
            ):
                read()
    finally:
        flip(array)
    assert CheckpointReader(stopped / "trained").steps() == [3]


@pytest.mark.full
def test_a_run_that_saved_everything_goes_on_saving_what_is_trained_and_back(runs, base, tmp_path, capsys):
    folder, state, _ = runs
    shutil.copytree(folder / "all", tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "checkpoints" / "4")
    config = lora(base, tmp_path, "all")
    assert equal(run(dataclasses.replace(config, checkpoint=lora(base, tmp_path).checkpoint)).state, state)
    assert "differ from" not in capsys.readouterr().out
    reader = CheckpointReader(tmp_path / "all")
    assert reader.about(2).base is None and reader.about(4).base == CheckpointReader(folder / "trained").about().base
    assert saved_bytes(tmp_path / "all" / "checkpoints" / "4") == saved_bytes(folder / "trained" / "checkpoints" / "4")
    shutil.copytree(folder / "trained", tmp_path / "back")
    shutil.rmtree(tmp_path / "back" / "checkpoints" / "4")
    assert equal(run(dataclasses.replace(config, name="back")).state, state)
    assert CheckpointReader(tmp_path / "back").about(4).base is None
    assert saved_bytes(tmp_path / "back" / "checkpoints" / "4") == saved_bytes(folder / "all" / "checkpoints" / "4")


def test_what_learned_before_it_was_frozen_is_saved(base, tmp_path, capsys):
    config, norms = lora(base, tmp_path), ("decoder/**/*norm",)
    both = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, trained=("**/lora", *norms)))
    state, stored, usual = start_of(config), new_base(both, abstract_state(both)), new_base(config, abstract_state(config))
    others = {name for name in usual.params if is_named(name.split("/"), norms)}
    assert set(usual.params) - others == set(stored.params) and others
    # From a checkpoint that says what it had left: no more than that. From a whole one: what is the same.
    assert base_of_resumed(config, stored, state, where="", say=print) == stored
    assert base_of_resumed(config, None, state, where="", say=print) == usual

    def learned(path, leaf):
        return leaf + 1e-3 if is_named(key_path_parts(path), norms) else leaf

    moved = dataclasses.replace(state, params=jax.tree_util.tree_map_with_path(learned, state.params))
    assert base_of_resumed(config, None, moved, where="", say=print) == stored
    said = capsys.readouterr().out
    assert said == f"{len(others)} of {len(usual.params)} arrays that stay as they are differ from {usual}: they are saved too\n"
    # An average counts as well.
    strange = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.params))
    with pytest.raises(CheckpointError, match=f"found trained, but no frozen parameter of here is as in step 7 of {base}"):
        base_of_resumed(config, None, strange, where="here", say=print)


def test_frozen_parameters_that_the_base_does_not_give_are_saved(base, tmp_path):
    """Prompts that are drawn and stay, and parts that are not taken."""
    config = lora(base, tmp_path, prompt_lens=(2, 0))
    config = dataclasses.replace(config, init=InitConfig(str(base), ("encoder", "resnet", "embedding")))
    found = new_base(config, abstract_state(config))
    assert {name.split("/")[0] for name in found.params} == {"encoder", "resnet", "embedding"}
    assert not any({"prompt", "lora"} & set(name.split("/")) for name in found.params)
    nothing = dataclasses.replace(
        config, init=InitConfig(str(base), ("decoder",)), optimizer=dataclasses.replace(config.optimizer, trained=("decoder", "**/lora"))
    )
    with pytest.raises(CheckpointError, match="none of whose parameters stays as it is in this run"):
        new_base(nothing, abstract_state(nothing))


def test_a_light_checkpoint_is_no_base_but_a_start(runs, tmp_path):
    folder, state, _ = runs
    config = lora(folder / "trained", tmp_path)
    with pytest.raises(CheckpointError, match=r"found .*trained/checkpoints/4, which holds only what was trained, expected a whole one"):
        new_base(config, abstract_state(config))
    assert equal(start_of(lora(folder / "trained", tmp_path, "all")).params, state.ema)


def test_export_merges_updates_and_a_whole_checkpoint_is_written(runs, base, tmp_path):
    folder, state, _ = runs
    merged_config, weights, said = restore(folder / "trained")
    config = lora(base, folder)
    assert said == f"step 4 of {folder}/trained/checkpoints (averaged weights)" and merged_config.model.lora_rank == 0
    assert equal(weights.params, merged(state.ema, config.model)[0]) and equal(weights.stats, state.stats)
    lines: list[str] = []
    write_whole(folder / "trained", tmp_path / "written", progress=lines.append)
    assert f"{tmp_path}/written: checkpoint of step 4, " in lines[0] and f"over step 7 of {base}" in lines[0]
    reader = CheckpointReader(tmp_path / "written")
    about = reader.about()
    assert (about.base, about.config.checkpoint.content, about.config.name) == (None, "all", "written") and not reader.damage(4)
    assert set(reader.restore_all()) == {"params", "opt_state", "stats", "ema", "guard", "counters"}
    wanted = with_shardings(abstract_state(config), state_shardings(config, one_device(config)))
    assert equal(reader.restore(wanted), state)


def test_retention_keeps_the_newest(runs):
    assert CheckpointReader(runs[0] / "trained").steps() == [3, 4] and CheckpointReader(runs[0] / "all").steps() == [2, 4]
