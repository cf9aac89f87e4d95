"""A model of texts alone: it answers instructions, and refuses pictures, codes and evaluation sets that need them."""

from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import SweepConfig
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.eval import sweep
from ofa_jax.eval.instruct import LIKELIEST, Instructor, Request
from ofa_jax.eval.points import find_checkpoints
from ofa_jax.eval.world import World
from ofa_jax.models import ofa
from ofa_jax.tasks.base import Negatives


@pytest.fixture(scope="module")
def run(config, tokenizer, tmp_path_factory):
    """A run of texts with one checkpoint."""
    model = dataclasses.replace(config.model, without=("pictures", "codes"))
    data = dataclasses.replace(config.data, blocks=tuple(block for block in config.data.blocks if block.stream == "text"))
    texts = dataclasses.replace(config, model=model, data=data, eval=dataclasses.replace(config.eval, sets=()))
    params = jax.jit(lambda: ofa.create(model, config.vocab, jax.random.key(0))[1])()
    folder = tmp_path_factory.mktemp("texts")
    manager = CheckpointManager(folder)
    state = {"params": params, "stats": ofa.init_stats(model), "step": jnp.int32(1), "data_step": jnp.int32(1)}
    manager.save(1, state, config=texts, identity={"tokenizer": tokenizer.digest}, wait=True)
    manager.close()
    return folder


def test_instructions_have_no_pictures_and_no_codes(run):
    instructor = Instructor.load(run)
    assert instructor.predict(Request("what?"), dataclasses.replace(LIKELIEST, max_len=3)).output == "text"
    picture = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture, "PNG")
    with pytest.raises(DataError, match="image: found a picture for a model with model.without=pictures, expected none"):
        instructor.predict(Request("what?", picture.getvalue()))
    with pytest.raises(ConfigError, match="output: found codes for a model with model.without=codes, expected another"):
        instructor.check(output="codes")


def test_a_sweep_takes_it_on_sets_of_texts_alone(run, config, tokenizer, build_row, open_source, tmp_path):
    world = World(config, tokenizer, build_row, open_source, {"scenes": Negatives(), "prose": Negatives()})

    def swept(*sets: str):
        plan = SweepConfig((), sets=sets)
        return sweep.run_sweep(world, plan, checkpoints=find_checkpoints([run]), out=tmp_path, progress=lambda line: None)

    with pytest.raises(ConfigError, match=r"--checkpoint: .*: eval.sets.vqa/scenes.task: found vqa, which reads pictures, expected one of"):
        swept("text_infilling/prose", "vqa/scenes")
    assert {row["set"] for row in swept("text_infilling/prose")} == {"text_infilling/prose"}
