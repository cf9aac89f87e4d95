"""Checkpoints in and out: other programs' files -> a run's folder of ours, and back; and what any of them is.

An imported run has one checkpoint, of step 0, with the config that its shapes give and the tokeniser's table beside it, so that
`init.checkpoint`, `launch/eval.py --checkpoint` and `launch/convert.py export` take it like any other run.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.config.errors import ConvertError
from ofa_jax.config.render import to_json
from ofa_jax.config.schema import ModelConfig, RunConfig, VocabConfig, VQGANRunConfig
from ofa_jax.convert import huggingface, initial, taming, verify, vqgan_files
from ofa_jax.convert.architecture import model_of, size_of, vocab_of
from ofa_jax.convert.names import EMBEDDING, is_hf
from ofa_jax.convert.state_files import StateFile, read_state, write_npz, write_safetensors
from ofa_jax.convert.torch_file import write_torch
from ofa_jax.convert.weights import Weights, fill, from_state, grown, left_of, shapes, to_fairseq_names, to_state
from ofa_jax.convert.whole_file import new_place
from ofa_jax.models import ofa
from ofa_jax.models.lora import merged
from ofa_jax.parallel.mesh import on_first_device
from ofa_jax.vocab import gpt2_bpe
from ofa_jax.vocab.tokenizer import load_tokenizer

Override = Callable[[RunConfig], RunConfig]
DICT_FILE = "dict.txt"


def read_model(
    file: StateFile, *, config: RunConfig | None = None, override: Override = lambda config: config
) -> tuple[RunConfig, dict[str, np.ndarray]]:
    """Returns (the config of a file's weights, the tensors under fairseq's names).

    config: what the weights are to be; without it the shapes say so, changed by `override` as flags do (its vocabulary says how the
    rows are divided). Raises ConvertError when the weights are not OFA's or contradict the config.json beside them.
    """
    where = str(file.path)
    state = to_fairseq_names(file.tensors)
    if config is not None:
        return config, state
    model = model_of(state, where=where)
    name = size_of(model)
    rows = next((state[tied].shape[0] for tied in (EMBEDDING, "decoder.embed_tokens.weight") if tied in state), 0)
    usual = VocabConfig()
    small = rows <= usual.num_codes + usual.num_bins  # a test's vocabulary: all of it text unless flags say otherwise
    vocab = vocab_of(state, where=where, **({"num_codes": 0, "num_bins": 0} if small else {}))
    config = override(RunConfig(name=f"ofa_{name}" if name else "imported", model=model, vocab=vocab))
    config_file = file.path / huggingface.CONFIG_FILE
    if config_file.is_file():
        huggingface.check_config_json(json.loads(config_file.read_text()), config.model, config.vocab, where=str(config_file))
    return config, state


def import_ofa(
    source: Path,
    out: Path,
    *,
    ema: bool = False,
    grow: bool = False,
    bpe: Path | None = None,
    config: RunConfig | None = None,
    override: Override = lambda config: config,
    progress: Callable[[str], None],
) -> RunConfig:
    """Imports OFA's weights from `source` (fairseq `.pt`, HF-style folder, safetensors, `.npz`) into the run folder `out`.

    ema: the averaged weights of a fairseq file instead of the last ones. config, override: as in `read_model`. grow: tables shorter than
    the config's get drawn rows (`weights.grown`). bpe: OFA's dict.txt or the folder that holds it; a HF-style folder has its own
    vocabulary. Returns the config written. Raises ConvertError, with nothing written, when anything does not fit.
    """
    file = read_state(source, part="ema" if ema else "auto")
    config, state = read_model(file, config=config, override=override)
    if grow:
        state, said = grown(state, config.model, config.vocab, seed=config.seed)
        progress("\n".join(said) or "no table is shorter than the config's")
    table = _dict_text(config.vocab, bpe, file.path / huggingface.VOCAB_FILE)
    weights = from_state(state, config.model, config.vocab, where=str(file.path))
    _say_left(file, state, config.model, progress)
    progress(f"{file.path}: {file.format}, {len(file.tensors)} tensors, {_size(config)}")
    return _write_run(out, config, weights, table, progress)


def import_part(
    part: Literal["bart", "resnet"], source: Path, out: Path, *, config: RunConfig, bpe: Path | None = None, progress: Callable[[str], None]
) -> RunConfig:
    """Fills the matching part of a freshly drawn `config.model` from BART or RoBERTa, or from torchvision's ResNet, into the run `out`.

    What was filled, what stays as drawn and what has no place is told through `progress`. Returns the config written.
    """
    file = read_state(source)
    where = str(file.path)
    if part == "resnet" and not config.model.reads_pictures:
        raise ConvertError(f"--part=resnet: found model.without={','.join(config.model.without)}, expected a model that reads pictures")
    if part == "bart":
        positions = min(config.model.num_source_positions, config.model.num_target_positions)
        found, unused = initial.language_tensors(file.tensors, num_text=config.vocab.num_text, num_positions=positions, where=where)
        mine = "embedding,encoder,decoder"
    else:
        found, unused = initial.resnet_tensors(file.tensors, where=where)
        mine = "resnet"
    params = jax.jit(lambda key: ofa.create(config.model, config.vocab, key)[1])(jax.random.key(config.seed))
    drawn = Weights(params, ofa.init_stats(config.model))
    weights, filled, left = fill(drawn, found, config.model, config.vocab, where=where)
    if part == "resnet":
        left = [name for name in left if name.startswith("encoder.embed_images.")]
        if left:
            raise ConvertError(f"{where}: found no {', '.join(left)}; expected all of the three stages")
    else:
        left = [name for name in left if not name.startswith("encoder.embed_images.")]
    for title, names in (("filled", filled), ("left as drawn", left), ("without a place in OFA", unused)):
        progress(f"{title}: {len(names)} tensors" + "".join(f"\n  {line}" for line in _grouped(names)))
    table = _dict_text(config.vocab, bpe, None) if part == "bart" else None
    written = _write_run(out, config, weights, table, progress)
    progress(f"start a run from it with --config.init.checkpoint={out} --config.init.parts={mine}")
    return written


def export(
    checkpoint: Path,
    out: Path,
    *,
    layout: str | None = None,
    override: Override = lambda config: config,
    progress: Callable[[str], None],
) -> None:
    """Writes a checkpoint of ours for other programs: a HF-style folder ("hf", where no layout is given), a fairseq `.pt` ("fairseq"), or
    the bare state ("npz"); of a VQGAN as taming-transformers reads it ("taming", where none is given) or "npz".

    The average of the weights is written where the run keeps one. override: of the run's config, whose `init.checkpoint` says where the
    base of a checkpoint is that holds only what was trained. Raises ConvertError when `out` is there already, or for a layout that the
    model does not have.
    """
    vqgan = vqgan_files.is_vqgan_run(checkpoint)
    layouts = ("taming", "npz") if vqgan else ("hf", "fairseq", "npz")
    layout = layout or layouts[0]
    if layout not in layouts:
        raise ConvertError(f"layout: found {layout}, expected one of {', '.join(layouts)} for {checkpoint}")
    if vqgan:
        vqgan_files.export_vqgan(checkpoint, out, bare=layout == "npz", progress=progress)
        return
    config, weights, said = restore(checkpoint, override=override)
    if layout == "hf":
        text = json.dumps(huggingface.config_json(config.model, config.vocab), indent=2) + "\n"
        with new_place(out, folder=True) as new:
            (new / huggingface.CONFIG_FILE).write_text(text)
            (new / huggingface.GENERATION_FILE).write_text(json.dumps(huggingface.generation_json(), indent=2) + "\n")
            if config.vocab.tokenizer != "gpt2_bpe" or config.vocab.num_text == gpt2_bpe.NUM_TEXT:
                huggingface.write_tokenizer(new, config.vocab)
            state = to_state(weights, config.model, config.vocab, style="hf")
            write_safetensors(new / "model.safetensors", state, {"format": "pt"})
    else:
        state = to_state(weights, config.model, config.vocab)
        with new_place(out, folder=False) as new:
            if layout == "npz":
                write_npz(new, state)
            else:
                write_torch(new, {"args": None, "cfg": None, "model": state, "extra_state": {}, "last_optimizer_state": None})
    progress(f"{out}: {len(state)} tensors, {_size(config)}, from {said}")
    if config.model.without:
        without = ", ".join(config.model.without)
        progress(f"{out} has nothing of {without} (model.without): what expects those tensors, as OFA's own code, draws them at random")


def write_whole(checkpoint: Path, out: Path, *, override: Override = lambda config: config, progress: Callable[[str], None]) -> None:
    """Writes the run folder `out` with one checkpoint: all that a checkpoint of ours (a run's newest where none is named) holds and leaves
    to its base, moments and counters too, so that a run of that name goes on from it.

    override: as in `export`. Raises CheckpointError without the checkpoint or its base, ConvertError when `out` is there already.
    """
    folder, step = find_run(checkpoint)
    config = CheckpointReader(folder).run_config(step)
    reader = CheckpointReader(folder, base=override(config).init.checkpoint if isinstance(config, RunConfig) else "")
    step = reader.steps()[-1] if step is None else step
    about, parts = reader.about(step), reader.restore_all(step)
    saving = dataclasses.replace(config.checkpoint, content="all")
    config = dataclasses.replace(config, name=out.name, workdir=str(out), checkpoint=saving)
    facts: dict[str, Any] = {"identity": about.identity, "metrics": about.metrics, "consents": about.consents, "facts": about.facts}
    with new_place(out, folder=True) as new:
        (new / "config.json").write_text(to_json(config))
        manager = CheckpointManager(new)
        try:
            manager.save(step, parts, config=config, **facts, wait=True)
        finally:
            manager.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
    over = f", over {about.base}" if about.base else ""
    progress(f"{out}: checkpoint of step {step}, {size / 1e6:,.1f} MB of arrays, from {reader.directory}{over}")


def restore(checkpoint: Path, *, override: Override = lambda config: config) -> tuple[RunConfig, Weights, str]:
    """Returns (config, weights as NumPy arrays, a phrase that names the step) of a run of ours, low-rank updates added to their matrices.
    override: as in `export`. Raises CheckpointError without one."""
    folder, step = find_run(checkpoint)
    config = CheckpointReader(folder).config(step)
    manager = CheckpointReader(folder, base=override(config).init.checkpoint)
    params = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0))[1])
    stats = jax.eval_shape(lambda: ofa.init_stats(config.model))
    found = manager.restore_params(on_first_device(params), on_first_device(stats), step=step)
    averaged = " (averaged weights)" if found.averaged else ""
    whole, model = merged(jax.tree.map(np.asarray, found.params), config.model)
    weights = Weights(whole, jax.tree.map(np.asarray, found.stats))
    return dataclasses.replace(config, model=model), weights, f"step {found.step} of {manager.directory}{averaged}"


def describe(path: Path) -> str:
    """Returns what a checkpoint is, ours or another program's, as text: format, size, numbers of the model, parameters, dtypes."""
    if (find_run(path)[0] / "checkpoints").is_dir():
        folder, step = find_run(path)
        manager = CheckpointManager(folder, read_only=True)
        run = manager.run_config(step)
        if isinstance(run, VQGANRunConfig):
            return f"format  ofa_jax\nsteps   {', '.join(map(str, manager.steps()))}\nmodel   {vqgan_files.describe_model(run.model)}"
        config = run
        lines = {"format": "ofa_jax", "steps": ", ".join(map(str, manager.steps())), "config": config.name}
        about = manager.about(step)
        lines |= {"holds": f"what was trained, over {about.base}"} if about.base else {}
        lines |= {f"identity.{name}": value for name, value in about.identity.items()}
    else:
        file = read_state(path)
        if taming.is_vqgan(file.tensors):
            said = vqgan_files.describe_model(taming.config_of(file.tensors, where=str(file.path)))
            return f"format  {file.format}, taming-transformers' names\nentries {len(file.tensors)}\nmodel   {said}"
        config, _ = read_model(file)
        lines = {
            "format": file.format + (", HF-style names" if is_hf(set(file.tensors)) else ", fairseq's names"),
            "entries": f"{len(file.tensors)} ({', '.join(f'{count} {kind}' for kind, count in file.count_dtypes().items())})",
        }
        lines |= {"beside the weights": ", ".join(file.metadata)} if file.metadata else {}
    model, vocab = config.model, config.vocab
    updates = f", and low-rank updates of rank {model.lora_rank}" if model.lora_rank else ""
    lines |= {
        "size": _named(model, "of its own"),
        "parameters": f"{count_parameters(dataclasses.replace(model, lora_rank=0), vocab):,}{updates}",
        "width, feed-forward, heads": f"{model.width}, {model.ffn_width}, {model.num_heads}",
        "layers": f"{model.encoder_layers} + {model.decoder_layers}",
        "ResNet stages": str(model.resnet.blocks) if model.reads_pictures else "none",
        "vocabulary": f"{vocab.size:,} = {vocab.num_text:,} text + {vocab.num_codes:,} codes + {vocab.num_bins:,} bins",
        "positions": f"{model.num_source_positions} source, {model.num_target_positions} target"
        + (f", {model.image_bucket_size} x {model.image_bucket_size} patches" if model.reads_pictures else "")
        + (f", {model.code_grid} x {model.code_grid} codes" if model.writes_codes else ""),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def verify_files(
    state: Path,
    inputs: Path,
    expected: Path,
    *,
    config: RunConfig | None,
    override: Override = lambda config: config,
    progress: Callable[[str], None],
) -> list[verify.Comparison]:
    """Returns the comparison of every array of `expected` with what the weights `state` give on `inputs` (`.npz`, see `verify`, or for a
    VQGAN `vqgan_files`, whose structure the weights say).

    config: the model and vocabulary; None takes what the shapes of the weights say, changed by `override`. What the config's model is
    without is told through `progress`. Raises ConvertError for weights or inputs that do not fit.
    """
    file = read_state(state)
    given, wanted = read_state(inputs).tensors, read_state(expected).tensors
    if taming.is_vqgan(file.tensors):
        return vqgan_files.verify(file.tensors, given, wanted, where=(str(file.path), str(inputs), str(expected)))
    config, tensors = read_model(file, config=config, override=override)
    verify.check_inputs(given, config.model, config.vocab, where=str(inputs))
    _say_left(file, tensors, config.model, progress)
    weights = from_state(tensors, config.model, config.vocab, where=str(file.path))
    found = verify.run(weights, given, config.model, config.vocab)
    return verify.compare(found, wanted, given, where=str(expected))


def count_parameters(model: ModelConfig, vocab: VocabConfig) -> int:
    """Returns the number of parameters, the shared matrix once and running statistics not counted."""
    return sum(math.prod(shape) for name, shape in shapes(model, vocab).items() if ".running_" not in name)


def _say_left(file: StateFile, state: dict[str, np.ndarray], model: ModelConfig, progress: Callable[[str], None]) -> None:
    if left := left_of(state, model):
        progress(f"left in {file.path}, as model.without={','.join(model.without)}: {left}")


def _size(config: RunConfig) -> str:
    return f"{_named(config.model, 'a size of its own')}, {count_parameters(config.model, config.vocab):,} parameters"


def _named(model: ModelConfig, otherwise: str) -> str:
    without = f" without {' and '.join(model.without)}" if model.without else ""
    return (size_of(model) or otherwise) + without


def _grouped(names: list[str]) -> Iterator[str]:
    """Names with layers and leaves joined: one line for `encoder.layers.*.fc1`, however deep the stack is."""
    groups: dict[str, int] = {}
    for name in names:
        stem = ".".join("*" if word.isdigit() else word for word in name.rsplit(".", 1)[0].split("."))
        groups[stem] = groups.get(stem, 0) + 1
    return (f"{stem} ({count})" for stem, count in groups.items())


def _dict_text(vocab: VocabConfig, bpe: Path | None, vocab_json: Path | None) -> str | None:
    """The text of the tokeniser's dict.txt, or None where the vocabulary is not GPT-2's."""
    if vocab.tokenizer != "gpt2_bpe" or vocab.num_text != gpt2_bpe.NUM_TEXT:
        return None
    if bpe is not None:
        path = bpe / DICT_FILE if bpe.is_dir() else bpe
        load_tokenizer(dataclasses.replace(vocab, path=str(path)))  # raises when it is no such table
        return path.read_text(encoding="utf-8")
    if vocab_json is not None and vocab_json.is_file():
        return huggingface.dict_of_vocab_json(vocab_json)
    raise ConvertError(
        "tokeniser: found no table of OFA's ids, expected --bpe=FOLDER with OFA's dict.txt (utils/BPE of the OFA repository) or a "
        "HF-style folder with vocab.json: with another order of ids the weights would read other words"
    )


def _write_run(out: Path, config: RunConfig, weights: Weights, table: str | None, progress: Callable[[str], None]) -> RunConfig:
    vocab = dataclasses.replace(config.vocab, path=str(out / DICT_FILE)) if table is not None else config.vocab
    config = dataclasses.replace(config, name=out.name, workdir=str(out), vocab=vocab)
    with new_place(out, folder=True) as new:
        if table is not None:
            (new / DICT_FILE).write_text(table, encoding="utf-8")
        (new / "config.json").write_text(to_json(config))
        tokenizer = load_tokenizer(dataclasses.replace(vocab, path=str(new / DICT_FILE))).digest if table is not None else ""
        zero = jnp.zeros((), jnp.int32)
        state = {"params": weights.params, "stats": weights.stats, "step": zero, "data_step": zero}
        manager = CheckpointManager(new)
        try:
            manager.save(0, jax.tree.map(jnp.asarray, state), config=config, identity={"tokenizer": tokenizer}, wait=True)
        finally:
            manager.close()
    progress(f"{out}: checkpoint of step 0" + (f", tokeniser table {DICT_FILE}" if table is not None else ", no tokeniser"))
    return config
