"""A model without the parts that its config does not use: what it holds, that it computes the same, what it takes and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from train_case import BLOCKS, CONFIG, MODEL, VOCAB, make_block

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.check import problems
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.load import read_config
from ofa_jax.config.rows import CODE_TASKS, SEQUENCES_PER_ITEM, TEXT_TASKS
from ofa_jax.config.schema import CheckpointConfig, InitConfig
from ofa_jax.models import ofa
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.tasks.table import ROWS
from ofa_jax.train.initial import take_parameters
from ofa_jax.train.state import abstract_state, init_state

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("pictures", "codes")
OF_PICTURES = {"resnet", "image", "image_norm", "image_proj", "image_relative", "code_norm"}


def without(*parts: str):
    return dataclasses.replace(MODEL, without=parts)


def paths(tree) -> set[str]:
    return {"/".join(key_path_parts(path)) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def cut(params: nnx.State, model) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure with those of the parameters that it has."""
    graphdef, own = jax.eval_shape(lambda: ofa.create(model, VOCAB, jax.random.key(0)))
    flat = dict(nnx.to_flat_state(params))
    return graphdef, nnx.from_flat_state([(path, flat[path]) for path, _ in nnx.to_flat_state(own)])


@pytest.mark.parametrize("config", ["glue.py:size=base", "gigaword.py:size=base"])
def test_a_run_on_texts_holds_nothing_of_pictures(config: str):
    run = read_config(str(ROOT / "configs" / "finetune" / config))
    run = dataclasses.replace(run, loss=dataclasses.replace(run.loss, answers=""))  # of a tokeniser's file
    state = abstract_state(run)
    found = paths(state)
    assert not [name for name in found if OF_PICTURES & set(name.split("/"))]
    assert jax.tree.leaves(state.stats) == []
    whole = abstract_state(dataclasses.replace(run, model=dataclasses.replace(run.model, without=())))
    left = paths(whole) - found
    assert found < paths(whole) and all(OF_PICTURES & set(name.split("/")) or name.startswith("stats/") for name in left)
    assert list(problems(run, 1)) == []


def test_texts_have_the_same_logits_without_the_parts_of_pictures():
    graphdef, params = jax.jit(lambda: ofa.create(MODEL, VOCAB, jax.random.key(0)))()
    block = make_block(BLOCKS[2], np.random.default_rng(0))

    def logits(graphdef, key, params):
        model = nnx.merge(graphdef, params)
        return model.logits(model.decode(model.encode(block.source_ids, key=key), block.decoder_ids, key=key))

    smaller, own = cut(params, without(*BOTH))
    assert len(jax.tree.leaves(own)) < len(jax.tree.leaves(params))
    for key in (None, jax.random.key(3)):
        expected = jax.jit(functools.partial(logits, graphdef, key))(params)
        np.testing.assert_array_equal(jax.jit(functools.partial(logits, smaller, key))(own), expected)


def test_each_part_may_be_left_out_alone():
    graphdef, params = jax.jit(lambda: ofa.create(MODEL, VOCAB, jax.random.key(0)))()
    stats, draw = ofa.init_stats(MODEL), np.random.default_rng(0)
    pairs, codes = make_block(BLOCKS[0], draw), make_block(BLOCKS[1], draw)

    def read(graphdef, params):
        model = nnx.merge(graphdef, params)
        features, _ = model.embed_images(pairs.images, None, stats=stats, train=False)
        return model.logits(model.decode(model.encode(pairs.source_ids, features), pairs.decoder_ids))

    def written(graphdef, params):
        model = nnx.merge(graphdef, params)
        encoded = model.encode(codes.source_ids)
        return model.logits(model.decode(encoded, codes.decoder_ids, jnp.ones(8, bool), code_rows="all"))

    for run, part in ((read, "codes"), (written, "pictures")):
        expected = jax.jit(functools.partial(run, graphdef))(params)
        smaller, own = cut(params, without(part))
        np.testing.assert_array_equal(jax.jit(functools.partial(run, smaller))(own), expected)
    with pytest.raises(ValueError, match="images: found some for a model with model.without=pictures, expected none"):
        read(*cut(params, without("pictures")))
    with pytest.raises(ValueError, match="code_rows: found 'all' for a model with model.without=codes, expected 'none'"):
        written(*cut(params, without("codes")))
    assert ofa.init_stats(without("pictures")) == {} and ofa.init_stats(without("codes"))


def test_the_tasks_that_read_no_picture():
    of_texts = {task.name for row in SEQUENCES_PER_ITEM["text"] for task in ROWS[row]}
    assert set(TEXT_TASKS) == of_texts
    assert {task.name for tasks in ROWS.values() for task in tasks if task.output == "codes"} == set(CODE_TASKS)


def test_a_model_takes_its_part_of_a_whole_one_and_says_what_it_leaves(tmp_path: Path):
    mesh = make_mesh(CONFIG.mesh, devices=jax.devices()[:1])
    plain = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]),
        optimizer=dataclasses.replace(CONFIG.optimizer, ema_decay=0.0),
        checkpoint=CheckpointConfig(100, 0.0, 2),
    )
    texts = dataclasses.replace(plain, model=without(*BOTH))
    drawn = {"whole": init_state(plain, mesh), "texts": init_state(texts, mesh)}
    for name, config in (("whole", plain), ("texts", texts)):
        manager = CheckpointManager(tmp_path / name)
        manager.save(7, jax.tree.map(lambda x: x + 1, drawn[name]), config=config, wait=True)
        manager.close()

    def take(config, name):
        config = dataclasses.replace(config, init=InitConfig(str(tmp_path / name)))
        return take_parameters(config, drawn["texts" if config.model.without else "whole"])

    state, said = take(texts, "whole")
    whole = dict(nnx.to_flat_state(jax.tree.map(lambda x: x + 1, drawn["whole"].params)))
    ours = dict(nnx.to_flat_state(state.params))
    assert all(np.array_equal(leaf.get_value(), whole[path].get_value()) for path, leaf in ours.items())
    sizes: dict[str, int] = {}
    for path, leaf in whole.items():
        if path not in ours:
            sizes[path[0]] = sizes.get(path[0], 0) + leaf.get_value().size
    assert said.endswith(
        f"; left there, as this model has no such parts: decoder {sizes['decoder']:,} (code_norm, layers/image_relative, positions/image, "
        f"positions/image_norm), encoder {sizes['encoder']:,} (image_norm, image_proj, layers/image_relative, positions/image, "
        f"positions/image_norm), resnet {sizes['resnet']:,}"
    )
    assert state.stats == {} and take(plain, "whole")[1].endswith("checkpoints")
    with pytest.raises(CheckpointError, match=r"found no params/.*, expected shape"):  # what is asked for and not there is an error
        take(plain, "texts")
    sizes_on_disk = [sum(f.stat().st_size for f in (tmp_path / name).rglob("*") if f.is_file()) for name in ("whole", "texts")]
    assert sizes_on_disk[1] < sizes_on_disk[0]
