"""Generation compiled for devices that are not here: a search over the beams of a batch of pictures, as an evaluation in training runs it.

The weights lie as in training, and are gathered by the compiler as it needs them; pictures are shared by all devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology
from ofa_jax.config.schema import RunConfig
from ofa_jax.decode.constraints import Constraint
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.eval.programs import Programs, Search
from ofa_jax.models.ofa import create
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.pods.collectives import Line, by_kind, collectives
from ofa_jax.pods.hlo import parse
from ofa_jax.pods.program import compiled_within, peak_bytes
from ofa_jax.train.state import abstract_state, state_shardings, with_shardings

# Captions of the official evaluation: beam 5, up to 16 tokens (OFA-Sys/OFA, run_scripts/caption/evaluate_caption.sh).
BEAM, MAX_LEN, SOURCE_LEN, PICTURES = 5, 16, 16, 16


@dataclasses.dataclass(frozen=True)
class CompiledDecoding:
    """Two programs: features of pictures, and the search of captions for them."""

    pictures: int  # on each chip
    beam: int
    max_len: int
    embed_peak: int  # bytes of a chip
    search_peak: int
    collectives: list[Line]  # of the search, loops of tokens counted to their longest
    compile_s: float


def compile_decoding(config: RunConfig, topology: Topology, devices: Sequence[jax.Device]) -> CompiledDecoding:
    """Returns captioning of `PICTURES` pictures a chip, of the side that the run evaluates with, compiled for `devices`.

    Raises `UserError` where the model reads no pictures or the mesh does not fit the devices, `DoesNotFitError` where the compiler finds no
    room for a program.
    """
    if not config.model.reads_pictures:
        raise UserError(f"model.without: found {','.join(config.model.without)}, expected a model that reads pictures, to write captions")
    mesh = make_mesh(config.mesh, devices=devices)
    count, px = PICTURES * topology.chips, config.eval.image_px
    graphdef, params = jax.eval_shape(lambda key: create(config.model, config.vocab, key, precision=config.precision), jax.random.key(0))
    del params
    programs = Programs(graphdef, vocab=config.vocab, mesh=mesh)
    state = with_shardings(abstract_state(config), state_shardings(config, mesh))
    shared, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=shared)

    embed_args = (state.params, state.stats, rows((px, px, 3), jnp.uint8), rows((), jnp.bool_))
    embed, embed_s = compiled_within(programs.embed.lower(*embed_args), topology)
    features = jax.eval_shape(programs.embed, *embed_args)
    batch = {
        "source_ids": rows((SOURCE_LEN,), jnp.int32),
        "features": rows(features.shape[1:], features.dtype),
        "picture": rows((), jnp.int32),
        "present": rows((), jnp.bool_),
    }
    how = Search("beam", DecodeConfig(beam=BEAM, max_len=MAX_LEN))
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole)
    lowered = programs.search.lower(state.params, batch, Constraint(), seed, rows((), jnp.uint32), how=how)
    search, search_s = compiled_within(lowered, topology)
    sent = collectives(dataclasses.replace(parse(search.as_text()), open_turns=MAX_LEN + 1), dict(mesh.shape), slices=topology.slices)
    embed_peak, search_peak = (peak_bytes(one.memory_analysis(), topology) for one in (embed, search))
    return CompiledDecoding(PICTURES, BEAM, MAX_LEN, embed_peak, search_peak, by_kind(sent), embed_s + search_s)
