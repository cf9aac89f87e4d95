"""Checkpoints of every format that was ever written are read by this version. Their files are in `written/`; see write_fixture.py."""

import dataclasses
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from write_fixture import FROZEN, STEP, TOKENIZER, counted

from ofa_jax.checkpoint.about import FORMAT
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.config.parameters import is_named
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.saving import CheckpointEvents
from ofa_jax.train.start import start_state
from ofa_jax.train.state import abstract_state, state_shardings, with_shardings

WRITTEN = Path(__file__).resolve().parent / "written"
FIRST_PARTS = ("params", "opt_state", "stats", "ema", "step", "data_step")  # of the state that the first format knew
FORMATS = sorted(int(path.name.split("_")[1].split(".")[0]) for path in WRITTEN.glob("format_*.tar.xz"))


def unpacked(version, folder):
    with tarfile.open(WRITTEN / f"format_{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_there_is_a_checkpoint_of_every_format():
    assert list(range(1, FORMAT + 1)) == FORMATS


@pytest.mark.parametrize("version", FORMATS)
def test_a_run_goes_on_from_a_checkpoint_of_any_format(version, tmp_path):
    manager = CheckpointManager(unpacked(version, tmp_path))
    config = dataclasses.replace(manager.run_config(), steps=100)
    mesh, abstract, said = make_mesh(config.mesh), abstract_state(config), []
    start = start_state(
        config,
        manager,
        identity={"tokenizer": TOKENIZER, "data/d": "1"} if version == 1 else {"tokenizer": TOKENIZER},
        mesh=mesh,
        abstract=abstract,
        allow=(),
        events=CheckpointEvents(tmp_path),
        say=said.append,
    )
    manager.close()
    state = start.state
    assert start.consents == () and start.base is None
    # A part that a later version added to the state is not in the file: all that is there is as it was written.
    expected = counted_parts(abstract)
    for part in FIRST_PARTS:
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(expected, part))
    assert said[-1] == f"going on from step {STEP} of {tmp_path / 'checkpoints'}"
    if version == 1:
        assert any("has format 1, which does not say: versions, seed, digests of the data, digests of its files" in line for line in said)
    assert CheckpointManager(tmp_path, read_only=True).restore_params().averaged


@pytest.mark.parametrize("version", [version for version in FORMATS if version >= 3])
def test_what_was_trained_alone_lies_over_its_base(version, tmp_path):
    folder = unpacked(version, tmp_path)
    reader = CheckpointReader(folder / "light", base=str(folder))
    config = reader.run_config()
    abstract = abstract_state(config)
    state = reader.restore(with_shardings(abstract, state_shardings(config, make_mesh(config.mesh))))
    expected, base = counted(abstract), CheckpointReader(folder).restore_params(abstract.params)
    for part in ("params", "ema"):
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, own, there: there if is_named(key_path_parts(path), FROZEN) else own, getattr(expected, part), base.params
        )
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), wanted)
    jax.tree.map(np.testing.assert_array_equal, (state.opt_state, state.stats), (expected.opt_state, expected.stats))


def counted_parts(abstract):
    """The arrays that were written: those of the parts that the first format knew, in their order."""
    known = dataclasses.make_dataclass("Known", FIRST_PARTS, frozen=True)
    jax.tree_util.register_dataclass(known, data_fields=list(FIRST_PARTS), meta_fields=[])
    return counted(known(*(getattr(abstract, name) for name in FIRST_PARTS)))


def test_a_part_that_the_checkpoint_lacks_is_filled_in(tmp_path):
    """A later version of the state has a part more; it gets the values it is given, and the caller can say so."""
    manager = CheckpointManager(unpacked(1, tmp_path), read_only=True)
    config = manager.run_config()
    abstract = with_shardings(abstract_state(config), state_shardings(config, make_mesh(config.mesh)))
    parts = {field.name: getattr(abstract, field.name) for field in dataclasses.fields(abstract)}
    wider = parts | {"later": {"count": parts["step"], "worst": parts["step"]}, "one": parts["step"]}
    wider.pop("guard", None)
    assert manager.missing_parts(wider, step=STEP) == ("later", "one")
    fill = {"later": {"count": jnp.int32(5), "worst": jnp.int32(6)}, "one": jnp.int32(7)}
    state = manager.restore(wider, step=STEP, fill=fill)
    assert (int(state["later"]["count"]), int(state["later"]["worst"]), int(state["one"]), int(state["step"])) == (5, 6, 7, STEP)
    jax.tree.map(np.testing.assert_array_equal, state["params"], counted_parts(abstract).params)
