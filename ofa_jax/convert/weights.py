"""Weights of OFA in and out: a state dict of PyTorch tensors <-> our parameters and statistics. Nothing is filled in silently.

fairseq's loader gives every missing or misnamed tensor a fresh random value without a word; here a tensor that is missing, not
expected, of another shape or kind, or not finite is an error, and one error lists them all. The three copies of the vocabulary matrix
must be equal; buffers are computed from the config and compared with the stored ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.convert.names import EMBEDDING, TIED, Path, Tensor, from_hf, has_image_cells, is_hf, left_group, tensors, to_hf
from ofa_jax.models import ofa
from ofa_jax.models.position_bias import image_buckets, token_buckets
from ofa_jax.parallel.rules import key_path_parts

State = Mapping[str, np.ndarray]
Style = Literal["fairseq", "hf"]

VERSION = 3.0  # fairseq's `version` buffer of a Transformer with the present layer norms
NUM_FILLERS = {"fairseq": 769, "hf": 768}  # entries of `image_position_idx` behind the code grid
_IGNORED = re.compile(r"(\.version|\.num_batches_tracked)$")
_MAX_LISTED = 2_000


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters and running statistics as trees of NumPy arrays with the structure of `ofa.create` and `ofa.init_stats`."""

    params: Any
    stats: Any


class Slot(NamedTuple):
    """One tensor of the state dict and where its values lie in ours."""

    tensor: Tensor
    name: str  # fairseq's
    layer: int | None  # of the stack that `tensor` is
    shape: tuple[int, ...]  # PyTorch's


def shapes(model: ModelConfig, vocab: VocabConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every float tensor by fairseq's name, tied matrices once."""
    return {name: shape for _, name, _, shape in _slots(model, vocab)}


def _abstract(model: ModelConfig, vocab: VocabConfig) -> dict[str, Any]:
    params = jax.eval_shape(lambda: ofa.create(model, vocab, jax.random.key(0))[1])
    return {"params": params, "stats": jax.eval_shape(lambda: ofa.init_stats(model))}


def _leaves(abstract: dict[str, Any]) -> dict[tuple[str, Path], jax.ShapeDtypeStruct]:
    return {
        (tree, key_path_parts(path)): leaf
        for tree, values in abstract.items()
        for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]
    }


def _slots(model: ModelConfig, vocab: VocabConfig) -> Iterator[Slot]:
    """Yields the slot of every float tensor of the state, tied matrices once."""
    leaves = _leaves(_abstract(model, vocab))
    known = {(t.tree, t.path) for t in tensors(model)}
    if known != set(leaves):
        raise AssertionError(f"the name map and the model differ in {sorted(known ^ set(leaves))}")
    for tensor in tensors(model):
        shape = leaves[tensor.tree, tensor.path].shape
        if tensor.name == EMBEDDING:
            shape = (vocab.size, *shape[1:])  # the rows that only pad the matrix are ours
        if not tensor.stacked:
            yield Slot(tensor, tensor.name, None, tensor.torch_shape(shape))
            continue
        for layer, name in enumerate(tensor.names(shape[0])):
            yield Slot(tensor, name, layer, tensor.torch_shape(shape[1:]))


def buffers(model: ModelConfig, *, style: Style = "fairseq") -> dict[str, np.ndarray]:
    """Returns the integer buffers of the official modules: both bucket tables of each stack and the decoder's code positions, of the parts
    that the model has."""
    places = np.arange(model.max_positions)
    relative = places[:, None] - places[None]
    one = token_buckets(relative, bucket_size=model.token_bucket_size, max_positions=model.max_positions).astype(np.int64)
    ids = np.arange(model.num_image_positions)
    two = np.asarray(image_buckets(ids[:, None], ids[None], side=model.image_bucket_size)).astype(np.int64)
    grid = np.arange(model.code_grid)
    cells = model.image_bucket_size * grid[:, None] + grid + 1  # a grid wider than the table's runs into its next row, as in theirs
    fillers = np.full(NUM_FILLERS[style], model.code_filler_id)
    found = {
        "encoder.token_rp_bucket": one,
        "decoder.token_rp_bucket": one,
        "encoder.image_rp_bucket": two,
        "decoder.image_rp_bucket": two,
        "decoder.image_position_idx": np.concatenate([[0], cells.reshape(-1), fillers]),
    }
    return {name: array for name, array in found.items() if not left_group(name, model)}


def to_fairseq_names(state: State) -> dict[str, np.ndarray]:
    """Returns the state under fairseq's present names: HF-style names translated, the two old forms of fairseq's own split or renamed."""
    names = set(state)
    renamed = {from_hf(name): array for name, array in state.items()} if is_hf(names) else dict(state)
    if len(renamed) != len(state):
        raise ConvertError("found a tensor under its fairseq name and its HF-style name at once, expected one of the two styles")
    return dict(item for name, array in renamed.items() for item in _present_names(name, array))


_OLD_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def _present_names(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensor under the names that fairseq has used since attention had one matrix for query, key and value."""
    old = re.match(r"^(?P<stack>encoder|decoder)\.layers\.(?P<layer>\d+)\.layer_norms\.(?P<index>\d)\.(?P<leaf>weight|bias)$", name)
    joint = re.match(r"^(?P<stem>.*attn)\.in_proj_(?P<leaf>weight|bias)$", name)
    if old and int(old["index"]) < len(_OLD_NORMS[old["stack"]]):
        yield f"{old['stack']}.layers.{old['layer']}.{_OLD_NORMS[old['stack']][int(old['index'])]}.{old['leaf']}", array
    elif joint and array.ndim and array.shape[0] % 3 == 0:
        for part, rows in zip("qkv", np.split(array, 3), strict=True):
            yield f"{joint['stem']}.{part}_proj.{joint['leaf']}", rows
    else:
        yield name, array


def from_state(state: State, model: ModelConfig, vocab: VocabConfig, *, where: str) -> Weights:
    """Returns the weights of a whole state dict, in float32 (float64 stays); names in either style. What belongs to a part that
    `model.without` names is not looked at (`left_of` says how much it is).

    `where` begins the error's sentence, the file as a rule. Raises ConvertError that lists every tensor that is missing, not expected,
    of another shape or no float, tied matrices that differ, buffers that are not those of the config, and values that are not finite.
    """
    found = {name: array for name, array in to_fairseq_names(state).items() if not left_group(name, model)}
    faults = list(_buffer_faults(found, model))
    found = {name: array for name, array in found.items() if not _IGNORED.search(name) and name not in _BUFFER_NAMES}
    faults += _tie_faults(found)
    embedding = next((found[name] for name in TIED if name in found), None)
    found = {name: array for name, array in found.items() if name not in TIED}
    if embedding is not None:
        found[EMBEDDING] = embedding
    slots = list(_slots(model, vocab))
    expected = {name: shape for _, name, _, shape in slots}
    faults += [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    faults += [f"not expected: {name} {tuple(array.shape)}" for name, array in found.items() if name not in expected]
    for name, shape in expected.items():
        if name in found:
            faults += tensor_faults(name, found[name], shape)
    refuse_faults(faults, where)
    return _assemble(found, slots, model, vocab)


def left_of(state: State, model: ModelConfig) -> str:
    """Returns how many numbers of a state dict belong to parts that `model.without` names, by module of fairseq's ("encoder.embed_images
    42,476,736, ..."), buffers left out; an empty text where there are none."""
    counts: dict[str, int] = {}
    for name, array in to_fairseq_names(state).items():
        group = left_group(name, model)
        if group and name not in _BUFFER_NAMES and not _IGNORED.search(name):
            counts[group] = counts.get(group, 0) + int(array.size)
    return ", ".join(f"{group} {count:,}" for group, count in counts.items())


_BUFFER_NAMES = frozenset(
    f"{stack}.{name}" for stack in ("encoder", "decoder") for name in ("token_rp_bucket", "image_rp_bucket", "image_position_idx")
)


def _buffer_faults(found: State, model: ModelConfig) -> Iterator[str]:
    stored = {name: found[name] for name in _BUFFER_NAMES if name in found}
    if not stored:
        return
    derived = buffers(model)
    for name, array in stored.items():
        if name not in derived:
            yield f"not expected: {name} {tuple(array.shape)}"
            continue
        # The number of fillers differs between the ports, and nothing reads past the grid.
        length = 1 + model.code_grid**2 if name.endswith("image_position_idx") else None
        mine, theirs = derived[name][:length], array[:length] if array.ndim else array
        if theirs.shape != mine.shape or not np.array_equal(theirs, mine):
            yield f"other buffer: {name} {tuple(array.shape)} is not what this model's config gives"


def _tie_faults(found: State) -> Iterator[str]:
    copies = [(name, found[name]) for name in TIED if name in found]
    for name, array in copies[1:]:
        first = copies[0][1]
        if array is not first and not (array.shape == first.shape and array.dtype == first.dtype and _same_bits(array, first)):
            yield f"not tied: {name} differs from {copies[0][0]}, expected equal matrices"


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint8) if a.flags.c_contiguous else a, b.view(np.uint8) if b.flags.c_contiguous else b)


def tensor_faults(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
    """Yields what is wrong with one tensor, at most one phrase: another shape than `shape`, no float, or values that are not finite."""
    if tuple(array.shape) != shape:
        yield f"other shape: {name} found {tuple(array.shape)}, expected {shape}"
    elif not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        yield f"other dtype: {name} found {array.dtype}, expected a float"
    elif not np.isfinite(array).all():
        yield f"not finite: {name} has {int(np.size(array) - np.isfinite(array).sum())} NaN or infinite values"


def fill(drawn: Weights, found: State, model: ModelConfig, vocab: VocabConfig, *, where: str) -> tuple[Weights, list[str], list[str]]:
    """Returns (`drawn` with the tensors of `found` in it, names filled, names left as drawn); fairseq's names, tied matrices once.

    A table of token or position embeddings may be shorter than the model's: its rows are filled from the first. Raises ConvertError
    that lists every tensor which is not the model's, of another shape, no float, or not finite.
    """
    slots = list(_slots(model, vocab))
    expected = {name: shape for _, name, _, shape in slots}
    faults = [f"not expected: {name} {tuple(array.shape)}" for name, array in found.items() if name not in expected]
    for name, array in found.items():
        if name in expected:
            shape = expected[name]
            shorter = _is_table(name) and array.ndim == 2 and array.shape[0] <= shape[0]
            faults += tensor_faults(name, array, (array.shape[0], *shape[1:]) if shorter else shape)
    refuse_faults(faults, where)
    filled = [name for name in expected if name in found]
    return _assemble(found, slots, model, vocab, start=drawn), filled, [name for name in expected if name not in found]


def grown(state: State, model: ModelConfig, vocab: VocabConfig, *, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (the state with tables as long as the model's, what was changed, a line each); fairseq's names.

    As the official loader does (`upgrade_state_dict_named`): a vocabulary matrix or a table of image positions that is too short gets rows
    from N(0, D^-0.5) at its end, and a matrix with exactly one row too many loses the last (an older MASK). Everything else stays.
    """
    new, said = dict(state), []
    draws = np.random.default_rng(seed)
    tables = [(TIED, vocab.size)] + [
        ((f"{stack}.embed_image_positions.weight",), model.num_image_positions)
        for stack in ("encoder", "decoder")
        if has_image_cells(model, stack)
    ]
    for all_names, rows in tables:
        names = [name for name in all_names if name in state]
        if not names or state[names[0]].ndim != 2 or any(_tie_faults({name: state[name] for name in names})):
            continue  # `from_state` says what is wrong with it
        table = state[names[0]]
        missing = rows - table.shape[0]
        if missing > 0:
            drawn = draws.normal(scale=table.shape[1] ** -0.5, size=(missing, table.shape[1]))
            resized = np.concatenate([table, drawn.astype(table.dtype)])
            said.append(f"{names[0]}: {missing} rows drawn behind its {table.shape[0]}")
        elif missing == -1 and all_names is TIED:
            resized = table[:-1]
            said.append(f"{names[0]}: its last row, one more than the vocabulary has, left out")
        else:
            continue
        new |= dict.fromkeys(names, resized)
    return new, said


def _is_table(name: str) -> bool:
    return re.search(r"embed_(tokens|positions|image_positions)\.weight$", name) is not None


def refuse_faults(faults: list[str], where: str) -> None:
    """Raises ConvertError that lists all `faults`, where there are any; `where` begins the sentence."""
    if faults:
        listed = "\n  ".join(faults[:_MAX_LISTED])
        raise ConvertError(f"{where}: found {len(faults)} fault(s) in the weights, expected none; nothing was written\n  {listed}")


def _assemble(found: State, slots: list[Slot], model: ModelConfig, vocab: VocabConfig, *, start: Weights | None = None) -> Weights:
    """Returns the tensors of `found` in our trees, over `start` or zeros."""
    abstract = _abstract(model, vocab)
    wide = all(array.dtype == np.float64 for array in found.values())
    if start is None:
        arrays = {key: np.zeros(leaf.shape, np.float64 if wide else np.float32) for key, leaf in _leaves(abstract).items()}
    else:
        arrays = {key: np.array(leaf) for key, leaf in _leaves({"params": start.params, "stats": start.stats}).items()}
    for tensor, name, layer, _ in slots:
        if name not in found:
            continue
        target = arrays[tensor.tree, tensor.path]
        value = tensor.from_torch(found[name])
        if layer is None:
            target[: value.shape[0]] = value  # all rows but those that pad a table
        else:
            target[layer] = value

    def filled(tree: str) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: arrays[tree, key_path_parts(path)], abstract[tree])

    return Weights(filled("params"), filled("stats"))


def to_state(weights: Weights, model: ModelConfig, vocab: VocabConfig, *, style: Style = "fairseq") -> dict[str, np.ndarray]:
    """Returns the whole state dict, entry for entry as the official modules have it: weights, three copies of the tied matrix (one
    array), batch-norm counters (0: they are not kept) and buffers; nothing of what `model.without` names. Linear and convolution weights
    are copied to PyTorch's order.
    """
    values = {
        (tree, key_path_parts(path)): np.asarray(leaf)
        for tree in ("params", "stats")
        for path, leaf in jax.tree_util.tree_flatten_with_path(getattr(weights, tree))[0]
    }
    state: dict[str, np.ndarray] = {}
    for tensor, name, layer, shape in _slots(model, vocab):
        array = values[tensor.tree, tensor.path]
        array = array[: vocab.size] if layer is None and name == EMBEDDING else array if layer is None else array[layer]
        state[name] = np.ascontiguousarray(tensor.to_torch(array))
        assert state[name].shape == shape
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    state.update(dict.fromkeys(TIED, state[EMBEDDING]))
    state.update(buffers(model, style=style))
    if style == "hf":
        return {to_hf(name): array for name, array in state.items()}
    return {**state, **{f"{stack}.version": np.full(1, VERSION, np.float32) for stack in ("encoder", "decoder")}}
