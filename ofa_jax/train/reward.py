"""Self-critical training: a model learns from what it writes itself, by how much better that is than what else it wrote.

For every row the model, in evaluation mode, writes n hypotheses (a beam search's, or draws; of a painting's caption the codes of n
pictures). Each is rewarded, its baseline is the mean reward of the row's others (leave-one-out), and the loss is the sum over its tokens,
EOS too, of -log p(token) * (reward - baseline), over the number of tokens of the batch (official `scst_reward_criterion`; Rennie et al.,
arXiv 1612.00563). That is the cross-entropy of a sequence that weighs as much as its advantage: the hypotheses take the places of the
row's n sequences, and the step is that of every run, with the config's dropout and batch norm.

Hypotheses are of the parameters that the update changes, so writing waits for the update before. On one device a batch is written in
two halves: while the second is written, the first is rewarded on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, RewardConfig, RowBlock, RunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.decode.beam import Hypotheses, beam_search
from ofa_jax.decode.constraints import Constraint, IdRange
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.sample import sample
from ofa_jax.parallel.mesh import batch_sharding
from ofa_jax.train.keys import DATA_KEY, run_key

# (hypotheses int32 [R, n, L], EOS-ended and PAD behind; the host's block with the rows' own targets) -> rewards float64 [R, n].
Rewarder = Callable[[np.ndarray, Block], np.ndarray]
_SAMPLE_KEY = 1 << 20  # folded into a step's key


def advantages(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns float64 [R, n]: each reward less the mean of the row's others; 0 where `valid` bool [R, n] is False or there is no other."""
    count = valid.sum(1, keepdims=True)
    total = np.where(valid, rewards, 0.0).sum(1, keepdims=True)
    others = (total - rewards) / np.maximum(count - 1, 1)
    return np.where(valid & (count > 1), rewards - others, 0.0)


def with_hypotheses(block: Block, hypotheses: np.ndarray, weights: np.ndarray) -> Block:
    """Returns the block with its sequences' targets replaced by hypotheses int32 [R, n, L], which count as `weights` [R, n].

    Raises ValueError for another number of them than the block has sequences, or longer ones.
    """
    num, length = block.target_ids.shape
    flat = hypotheses.reshape(-1, hypotheses.shape[-1])
    if len(flat) != num or flat.shape[1] > length:
        raise ValueError(f"hypotheses: found {hypotheses.shape}, expected {num} of at most {length} tokens")
    targets = np.full((num, length), PAD_ID, np.int32)
    targets[:, : flat.shape[1]] = flat
    decoder = np.full((num, length), PAD_ID, np.int32)
    decoder[:, 0] = BOS_ID
    decoder[:, 1:] = np.where(targets[:, :-1] == EOS_ID, PAD_ID, targets[:, :-1])
    return block._replace(decoder_ids=decoder, target_ids=targets, confidence=weights.reshape(-1).astype(np.float32))


class SelfCritical:
    """Turns a batch into one of the model's own hypotheses."""

    def __init__(self, config: RunConfig, mesh: Mesh, graphdef: Any, rewarder: Rewarder):
        """config: of a run with `reward`. graphdef: of `models.ofa.create`."""
        self._config, self._mesh, self._rewarder = config, mesh, rewarder
        [self._reward] = config.reward
        whole = NamedSharding(mesh, PartitionSpec())
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rewards")

        search = functools.partial(_search, self._reward, config)

        def write(params: Any, stats: Any, block: Block, key: jax.Array, samples: int) -> jax.Array:
            params = jax.tree.map(lambda value: jax.lax.with_sharding_constraint(value, whole), params)
            model = nnx.merge(graphdef, params)
            features = None
            if block.images is not None:
                features = model.embed_images(block.images, block.hole_mask, stats=stats, train=False, key=None)[0]
            source = block.source_ids[::samples]  # those of a row are the same
            encoded = model.encode(source, features=features, image_mask=block.image_mask, key=None)
            return search(model, encoded, key, samples=samples, codes=block.images is None).sequences

        self._write = jax.jit(write, static_argnums=4)

    def close(self) -> None:
        """Ends the thread that rewards."""
        self._pool.shutdown(wait=True)

    def __call__(self, state: Any, batch: Batch, blocks: dict[str, Block]) -> tuple[dict[str, Block], dict[str, float]]:
        """Returns (the blocks on the devices with the model's hypotheses, "reward/mean" and "reward/spread" of this host's rows).

        batch: this host's arrays of the same rows; their targets are what the rewards compare with.
        """
        key = jax.random.fold_in(run_key(self._config.seed, DATA_KEY), batch.data_step)
        key = jax.random.fold_in(key, _SAMPLE_KEY)
        out, all_rewards, spreads = {}, [], []
        for index, config in enumerate(self._config.data.row_blocks):
            own, device = batch.blocks[config.name], blocks[config.name]
            hypotheses, rewards = self._written(state, config, own, device, jax.random.fold_in(key, index))
            valid = (hypotheses != PAD_ID).any(-1)
            changed = with_hypotheses(own, hypotheses, advantages(rewards, valid))
            sharding = batch_sharding(self._mesh)
            fields = {
                name: jax.make_array_from_process_local_data(sharding, getattr(changed, name))
                for name in ("decoder_ids", "target_ids", "confidence")
            }
            out[config.name] = device._replace(**fields)
            all_rewards.append(rewards[valid])
            spreads.append(rewards.std(1).mean())
        return out, {"reward/mean": float(np.concatenate(all_rewards).mean()), "reward/spread": float(np.mean(spreads))}

    def _written(self, state: Any, config: RowBlock, own: Block, device: Block, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """The hypotheses of this host's rows, int32 [R, n, L], and their rewards."""
        samples = config.pairs_per_image
        params = state.params
        rows = len(own.elements)
        halves = 2 if self._mesh.size == 1 and rows % 2 == 0 else 1
        size = rows // halves
        asked = []
        for half in range(halves):
            part = device if halves == 1 else rows_of(device, half * size, size, samples)
            asked.append(self._write(params, state.stats, part, jax.random.fold_in(key, half), samples))
        found, waiting = [], []
        for half, array in enumerate(asked):
            ids = _own_rows(array)
            found.append(ids)
            waiting.append(self._pool.submit(self._rewarder, ids, rows_of(own, half * size, size, samples) if halves > 1 else own))
        return np.concatenate(found), np.concatenate([one.result() for one in waiting])


def rows_of(block: Block, start: int, count: int, samples: int) -> Block:
    """Returns `count` rows of a block from `start` on, with their `samples` sequences each; NumPy arrays or those of one device."""

    def of(values: Any, each: int) -> Any:
        return None if values is None else values[start * each : (start + count) * each]

    by_row = ("images", "image_mask", "hole_mask", "elements")
    return Block(**{name: of(values, 1 if name in by_row else samples) for name, values in block._asdict().items()})


def _own_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array whose first axis may be shared by the devices, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _search(reward: RewardConfig, config: RunConfig, model: Any, encoded: Any, key: jax.Array, *, samples: int, codes: bool) -> Hypotheses:
    """`samples` hypotheses of each of Q encoded sources; with `codes` each is all codes of a picture and EOS."""
    if codes:
        num = config.model.code_grid**2
        rules = DecodeConfig(beam=samples, max_len=num, fixed_length=True)
        mask = jnp.ones(encoded.states.shape[0], bool)
        only: Constraint = IdRange(config.vocab.first_code_id, config.vocab.first_bin_id)
    else:
        rules = DecodeConfig(beam=samples, max_len=reward.max_len, no_repeat_ngram=reward.no_repeat_ngram)
        mask, only = None, Constraint()
    given: dict[str, Any] = {"config": rules, "constraint": only, "code_rows": "all" if codes else "none"}
    if reward.method == "beam":
        return beam_search(model, encoded, mask, **given)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(encoded.states.shape[0]))
    return sample(model, encoded, mask, keys, top_k=reward.top_k, **given)
