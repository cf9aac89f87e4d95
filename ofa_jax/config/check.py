"""Cross-field checks of a resolved config, before anything slow starts.

Every finding is one sentence: the field, what was found, what was expected and, for a number that must divide, the nearest legal ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ofa_jax.config.check_vqgan import vqgan_problems
from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import describe, element_names, field_types, is_row_tuple, matches
from ofa_jax.config.findings import (
    at_least,
    data_findings,
    fraction,
    mesh_findings,
    multiple,
    named_findings,
    positive,
    resolve_mesh,
    run_findings,
)
from ofa_jax.config.rows import ANSWERS, CODE_ROWS, CODE_TASKS, PROMPTED_ROWS, SEQUENCES_PER_ITEM, TASK_NAMES, TEXT_TASKS
from ofa_jax.config.schema import OPTIONAL_PARTS, UNK_ID, AnyRun, BlockConfig, EvalSetConfig, ModelConfig, RunConfig, VQGANRunConfig

BOX_TASKS = ("grounding", "grounded_captioning", "detection")
MODEL_PARTS = ("embedding", "resnet", "encoder", "decoder")
NUM_SPECIAL = 5  # BOS, PAD, EOS, UNK and MASK


def check(config: AnyRun, num_devices: int | None = None, *, training: bool = True) -> None:
    """Raises ConfigError with the first problem of `config`; `num_devices` is the number of devices of the mesh, where it is known.

    training: False where the model only decodes: no data, mesh or first parameters are needed then, as in the config of imported weights.
    """
    for problem in problems(config, num_devices, training=training):
        raise ConfigError(problem)


def problems(config: AnyRun, num_devices: int | None = None, *, training: bool = True) -> Iterator[str]:
    """Yields every problem of `config` as one sentence. Types come first: where one is wrong, nothing else is judged."""
    wrong = list(_types(config, ""))
    yield from wrong
    if wrong:
        return
    if isinstance(config, VQGANRunConfig):
        yield from vqgan_problems(config, num_devices, training=training)
        return
    yield from _run(config)
    yield from _loss(config)
    yield from _vocab(config)
    yield from _model(config)
    yield from _parts_used(config)
    yield from _reward(config)
    if training:
        yield from _mesh(config, num_devices)
        yield from _data(config, num_devices)
        yield from _accumulation(config)
        yield from _init(config)
    yield from _eval(config)


def _types(node: Any, prefix: str) -> Iterator[str]:
    for name, kind in field_types(type(node)).items():
        value, path = getattr(node, name), prefix + name
        if dataclasses.is_dataclass(kind):
            if isinstance(value, kind):  # type: ignore[arg-type]
                yield from _types(value, path + ".")
            else:
                yield f"{path}: found {value!r}, expected a {getattr(kind, '__name__', kind)}"
        elif is_row_tuple(kind):
            cls = kind.__args__[0]
            if not isinstance(value, tuple) or not all(isinstance(row, cls) for row in value):
                yield f"{path}: found {value!r}, expected a tuple of {cls.__name__}"
                continue
            for key, row in zip(element_names(value), value, strict=True):
                yield from _types(row, f"{path}.{key}.")
        elif not matches(value, kind):
            yield f"{path}: found {value!r}, expected {describe(kind)}"


def _run(config: RunConfig) -> Iterator[str]:
    yield from run_findings(config)
    yield from named_findings(config.optimizer, MODEL_PARTS)


def _loss(config: RunConfig) -> Iterator[str]:
    loss, size = config.loss, config.vocab.size
    yield from fraction("loss.label_smoothing", loss.label_smoothing, open_end=True)
    yield from at_least("loss.logit_chunk", loss.logit_chunk, 0)
    ids = loss.constraint_range
    if ids and not (len(ids) == 2 and UNK_ID < ids[0] < ids[1] <= size):
        yield f"loss.constraint_range: found {ids}, expected none or two ids, a first from {UNK_ID + 1} and a larger end up to {size}"
    for name in ("drop_worst", "drop_best"):
        ratio, updates = getattr(loss, name)
        yield from fraction(f"loss.{name}", ratio, open_end=True)
        yield from at_least(f"loss.{name}", updates, 0)
    yield from fraction("loss.encouraging_log_end", loss.encouraging_log_end, open_end=False)
    yield from at_least("loss.r_drop_alpha", loss.r_drop_alpha, 0)
    yield from fraction("loss.decoder_noise", loss.decoder_noise, open_end=True)
    yield from _closed_set(config)
    if config.objective == "picture_words":
        for field in dataclasses.fields(loss):
            value = getattr(loss, field.name)
            if field.name not in ("label_smoothing", "logit_chunk") and value != field.default:
                yield f"loss.{field.name}: found {value}, expected {field.default} for objective=picture_words, whose rows are no tokens"


def _reward(config: RunConfig) -> Iterator[str]:
    if len(config.reward) > 1:
        yield f"reward: found {len(config.reward)} of them, expected one or none"
    for reward in config.reward[:1]:
        yield from positive("reward.max_len", reward.max_len)
        yield from at_least("reward.no_repeat_ngram", reward.no_repeat_ngram, 0)
        yield from at_least("reward.top_k", reward.top_k, 0)
        if reward.reward == "cider" and not reward.frequencies:
            yield "reward.frequencies: found none for cider, expected a file of launch/prepare.py frequencies"
        if config.optimizer.accumulate > 1:
            yield f"optimizer.accumulate: found {config.optimizer.accumulate} with a reward, expected 1"
        for name in ("label_smoothing", "decoder_noise", "r_drop_alpha", "encouraging_log_end"):
            if getattr(config.loss, name):
                yield f"loss.{name}: found {getattr(config.loss, name)} with a reward, expected 0"
        for name in ("drop_worst", "drop_best"):
            if getattr(config.loss, name)[0]:
                yield f"loss.{name}: found {getattr(config.loss, name)} with a reward, whose losses may be negative, expected (0.0, 0)"
        if config.loss.answers:
            yield f"loss.answers: found {config.loss.answers} with a reward, expected none: hypotheses are written freely"
        for block in config.data.blocks:
            path = f"data.blocks.{block.name}"
            rows = {source.row for source in block.sources}
            if rows not in ({"short_caption"}, {"painting"}):
                yield f"{path}: found rows {sorted(rows)} with a reward, expected short_caption alone, or painting"
            if rows == {"painting"} and (reward.method != "sample" or reward.reward == "cider"):
                found = f"reward.method={reward.method}, reward.reward={reward.reward}"
                yield f"{path}: found {found} for paintings, expected method sample and FILE.py:function: a reward of pictures"
            if block.pairs_per_image < 2:
                yield f"{path}.pairs_per_image: found {block.pairs_per_image}, expected 2 or more hypotheses of a row, to be compared"
            if rows != {"painting"} and block.target_len <= reward.max_len:
                yield f"{path}.target_len: found {block.target_len}, expected more than reward.max_len={reward.max_len}, for EOS"


def _closed_set(config: RunConfig) -> Iterator[str]:
    found = f"loss.answers: found {config.loss.answers}"
    if config.loss.answers and config.loss.constraint_range:
        yield f"{found} beside loss.constraint_range={config.loss.constraint_range}, expected one of the two"
    if config.loss.answers == "task":
        rows = sorted({source.row for block in config.data.blocks for source in block.sources})
        sets = {frozenset(ANSWERS.get(row, ())) for row in rows}
        if len(sets) != 1 or frozenset() in sets:
            yield f"{found} with rows {', '.join(rows) or 'none'}, expected rows of one set of answers: {', '.join(ANSWERS)}"


def _vocab(config: RunConfig) -> Iterator[str]:
    vocab = config.vocab
    if vocab.tokenizer == "sentencepiece" and not vocab.path:
        yield "vocab.path: found nothing, expected the .model file of vocab.tokenizer=sentencepiece"
    if vocab.num_text <= NUM_SPECIAL:
        yield f"vocab.num_text: found {vocab.num_text}, expected more than the {NUM_SPECIAL} ids of BOS, PAD, EOS, UNK and MASK"
    yield from at_least("vocab.num_codes", vocab.num_codes, 1)
    yield from at_least("vocab.num_bins", vocab.num_bins, 2)
    yield from positive("vocab.canvas_px", vocab.canvas_px)
    yield from positive("vocab.pad_multiple", vocab.pad_multiple)


def attention_problems(config: RunConfig) -> Iterator[str]:
    """Yields what `model.attention` cannot do that the config asks of it; nothing for the reference."""
    model, why = config.model, f"because model.attention={config.model.attention}"
    if model.attention == "reference":
        return
    if model.attention_dropout:
        yield f"model.attention_dropout: found {model.attention_dropout}, expected 0, {why}, which drops no probabilities"
    if model.attention == "cudnn" and config.precision != "bf16":
        yield f"precision: found {config.precision}, expected bf16, {why}"
    if model.attention == "pallas" and any(model.prompt_lens):
        yield f"model.prompt_lens: found {model.prompt_lens}, expected (0, 0), {why}, which does not know prompts"
    if model.attention == "pallas" and config.precision == "f64":
        yield f"precision: found f64, expected bf16 or f32, {why}, whose softmax is in f32"


def _model(config: RunConfig) -> Iterator[str]:
    model, resnet = config.model, config.model.resnet
    for name in ("width", "ffn_width", "num_heads", "encoder_layers", "decoder_layers", "token_bucket_size", "image_bucket_size",
                 "max_positions", "num_source_positions", "num_target_positions", "code_image_px", "code_stride",
                 "orig_patch_image_px"):  # fmt: skip
        yield from positive(f"model.{name}", getattr(model, name))
    for name in ("base_width", "expansion", "stem_kernel", "stem_stride"):
        yield from positive(f"model.resnet.{name}", getattr(resnet, name))
    for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_drop_path_rate", "decoder_drop_path_rate",
                 "prompt_dropout"):  # fmt: skip
        yield from fraction(f"model.{name}", getattr(model, name), open_end=True)
    yield from fraction("model.resnet.drop_path_rate", resnet.drop_path_rate, open_end=True)
    yield from fraction("model.resnet.norm_momentum", resnet.norm_momentum, open_end=False)
    for name in ("attn_scale_factor", "layer_norm_eps", "init_std"):
        yield from positive(f"model.{name}", getattr(model, name))
    yield from positive("model.resnet.norm_eps", resnet.norm_eps)
    yield from at_least("model.norm_group", model.norm_group, 0)
    yield from at_least("model.adapter_width", model.adapter_width, 0)
    yield from at_least("model.lora_rank", model.lora_rank, 0)
    yield from positive("model.lora_alpha", model.lora_alpha)
    if min(model.prompt_lens) < 0:
        yield f"model.prompt_lens: found {model.prompt_lens}, expected no negative length"
    yield from attention_problems(config)
    if not resnet.blocks or min(resnet.blocks) < 1:
        yield f"model.resnet.blocks: found {resnet.blocks}, expected at least one stage with at least one block each"
    if len(resnet.strides) != len(resnet.blocks) or any(stride < 1 for stride in resnet.strides):
        yield f"model.resnet.strides: found {resnet.strides}, expected one positive stride for each of the {len(resnet.blocks)} stages"
    if model.num_heads > 0 and model.width > 0:
        yield from multiple("model.width", model.width, model.num_heads, "model.num_heads")
    if model.code_image_px > 0 and model.code_stride > 0:
        yield from multiple("model.code_image_px", model.code_image_px, model.code_stride, "model.code_stride")
        if model.code_grid > model.image_bucket_size:
            yield (
                f"model.code_image_px: found a code grid of {model.code_grid} a side, expected at most "
                f"model.image_bucket_size={model.image_bucket_size}"
            )
    if not 0 <= model.code_filler_id < model.num_image_positions:
        yield (
            f"model.code_filler_id: found {model.code_filler_id}, expected an image position id, from 0 to "
            f"{model.num_image_positions - 1} (model.image_bucket_size squared)"
        )


def _parts_used(config: RunConfig) -> Iterator[str]:
    """What the run reads or writes for which the model has no part (`model.without`)."""
    model = config.model
    for name in model.without:
        if name not in OPTIONAL_PARTS:
            yield f"model.without: found {name}, expected parts that a model may lack; {nearest(name, OPTIONAL_PARTS)}"
    why = f"because model.without={','.join(model.without)}"
    for block in config.data.blocks:
        path = f"data.blocks.{block.name}"
        if not model.reads_pictures and block.stream != "text":
            yield f"{path}.stream: found {block.stream}, expected text, whose rows have no picture, {why}"
        codes = sorted({source.row for source in block.sources if source.row in CODE_ROWS})
        if not model.writes_codes and codes:
            yield f"{path}.sources: found rows {', '.join(codes)}, whose targets are image codes, expected others, {why}"
    yield from unreadable_sets(config.eval.sets, model)
    if not model.reads_pictures and "resnet" in config.init.parts:
        yield f"init.parts: found resnet, expected other parts, {why}"


def unreadable_sets(sets: Sequence[EvalSetConfig], model: ModelConfig) -> Iterator[str]:
    """Yields the evaluation sets whose task reads or writes what `model` has no part for (`model.without`)."""
    why = f"because model.without={','.join(model.without)}"
    for one in sets:
        if not model.reads_pictures and one.task in TASK_NAMES and one.task not in TEXT_TASKS:
            yield f"eval.sets.{one.name}.task: found {one.task}, which reads pictures, expected one of {', '.join(TEXT_TASKS)}, {why}"
        if not model.writes_codes and one.task in CODE_TASKS:
            yield f"eval.sets.{one.name}.task: found {one.task}, whose targets are image codes, expected another task, {why}"


def _mesh(config: RunConfig, num_devices: int | None) -> Iterator[str]:
    model = config.model
    sizes = yield from mesh_findings(config.mesh, num_devices)
    if sizes is None:
        return
    if sizes["tensor"] > 1:
        why = f"mesh.tensor={sizes['tensor']} splits it"
        yield from multiple("model.num_heads", model.num_heads, sizes["tensor"], why)
        yield from multiple("model.ffn_width", model.ffn_width, sizes["tensor"], why)
    parts = sizes["fsdp"] * sizes["tensor"]
    if config.vocab.pad_multiple > 0 and config.vocab.padded_size % parts:
        yield (
            f"vocab.pad_multiple: found {config.vocab.pad_multiple}, which pads the vocabulary to {config.vocab.padded_size} rows, "
            f"expected a multiple of mesh.fsdp x mesh.tensor = {sizes['fsdp']} x {sizes['tensor']}"
        )
    if sizes["fsdp"] > 1:
        yield from multiple("model.width", model.width, sizes["fsdp"], f"mesh.fsdp={sizes['fsdp']} splits it")


def _data(config: RunConfig, num_devices: int | None) -> Iterator[str]:
    data = config.data
    yield from data_findings(data)
    for block in data.blocks:
        if block.stream == "pictures":
            yield f"data.blocks.{block.name}.stream: found pictures, expected pairs, images or text, because OFA reads sequences"
            continue
        if config.objective == "picture_words" and (block.stream == "text" or any(s.code_area for s in block.sources)):
            yield f"data.blocks.{block.name}: found rows without a whole picture, expected none for objective=picture_words"
        if config.objective == "picture_words" and block.image_px != config.data.blocks[0].image_px:
            first = config.data.blocks[0]
            yield f"data.blocks.{block.name}.image_px: found {block.image_px}, expected {first.image_px} as in block {first.name}"
        yield from _block(config, block, num_devices)


def _accumulation(config: RunConfig) -> Iterator[str]:
    count, loss = config.optimizer.accumulate, config.loss
    found = f"optimizer.accumulate: found {count}"
    if count <= 1:
        return
    if config.model.image_norm == "batch" and not config.model.norm_group and any(block.stream != "text" for block in config.data.blocks):
        yield f"{found} with model.norm_group=0, whose statistics are of the whole batch, expected 1, a group or model.image_norm=frozen"
    if loss.drop_worst[0] > 0 or loss.drop_best[0] > 0:
        yield f"{found} with loss.drop_worst or loss.drop_best, which choose among all tokens of the batch, expected 1"


def _block(config: RunConfig, block: BlockConfig, num_devices: int | None) -> Iterator[str]:
    model, path = config.model, f"data.blocks.{block.name}"
    yield from positive(f"{path}.rows", block.rows)
    yield from positive(f"{path}.pairs_per_image", block.pairs_per_image)
    if block.classes:
        yield from _classes(config, block, num_devices)
    else:
        yield from _rows_on_devices(config, f"{path}.rows", block.rows, block.stream, num_devices)
    yield from _length(config, f"{path}.source_len", block.source_len)
    yield from _length(config, f"{path}.target_len", block.target_len, codes=all(source.row in CODE_ROWS for source in block.sources))
    yield from _prompts(config, block)
    yield from _sources(config, block)
    if block.rand_augment and block.augment != "random_resize_crop":
        yield f"{path}.rand_augment: found true with augment={block.augment}, expected random_resize_crop, behind which OFA applies it"
    if block.augment == "imagenet":
        yield from _imagenet(config, block)
    drawn = config.reward and {source.row for source in block.sources} == {"painting"}  # several pictures of a caption
    if block.stream != "pairs" and block.pairs_per_image != 1 and not drawn:
        yield f"{path}.pairs_per_image: found {block.pairs_per_image}, expected 1, because a row of stream {block.stream} is one sequence"
    if block.stream == "text":
        for name in ("image_px", "num_patches"):
            if getattr(block, name):
                yield f"{path}.{name}: found {getattr(block, name)}, expected 0, because a row of stream text has no picture"
        return
    yield from _picture(config, f"{path}.image_px", block.image_px)
    grid = block.image_px // max(1, model.resnet.stride)
    if not 0 <= block.num_patches <= grid**2:
        yield f"{path}.num_patches: found {block.num_patches}, expected 0 (all) or at most {grid**2}, the {grid}x{grid} grid of the picture"


def _imagenet(config: RunConfig, block: BlockConfig) -> Iterator[str]:
    """Pictures are mirrored, turned and partly erased: no box and no word for left or right stays true."""
    found = f"data.blocks.{block.name}.augment: found imagenet"
    if others := sorted({source.row for source in block.sources} - {"class_name"}):
        yield f"{found} with rows {', '.join(others)}, expected class_name alone, whose words stay true of mirrored and turned pictures"
    if config.model.pixel_scale != "imagenet":
        yield f"{found} with model.pixel_scale={config.model.pixel_scale}, expected imagenet, of whose mean and deviation its noise is"


def _prompts(config: RunConfig, block: BlockConfig) -> Iterator[str]:
    """The decoder reads the source, and then the target: both need a place, and one shape."""
    path, prompted = f"data.blocks.{block.name}", {source.row for source in block.sources if source.row in PROMPTED_ROWS}
    if not prompted:
        return
    if others := sorted({source.row for source in block.sources} - prompted):
        yield f"{path}.sources: found rows {', '.join(others)} beside {', '.join(sorted(prompted))}, expected a block of their own"
    if block.classes:
        yield f"{path}.classes: found them with rows whose decoder reads the source, expected none"
    limit = min(config.model.max_positions, config.model.num_target_positions)
    if block.decoder_len > limit:
        yield (
            f"{path}: found source_len={block.source_len} and target_len={block.target_len}, expected at most {limit + 1} together, as "
            "the decoder reads the source before the target"
        )


def _rows_on_devices(config: RunConfig, path: str, rows: int, stream: str, num_devices: int | None) -> Iterator[str]:
    sizes, group = resolve_mesh(config.mesh, num_devices), config.model.norm_group
    shards, micro = sizes["data"] * sizes["fsdp"], max(config.optimizer.accumulate, 1)
    if shards > 1:
        yield from multiple(path, rows, shards, f"mesh data x fsdp = {sizes['data']} x {sizes['fsdp']} devices share the rows")
    if micro > 1 and rows % shards == 0:
        yield from multiple(path, rows, shards * micro, f"optimizer.accumulate={micro} micro-batches on each of {shards} devices")
    if config.model.image_norm == "batch" and group and stream != "text" and rows % (shards * micro) == 0:
        # A group of images that share batch statistics never crosses a device or a micro-batch, so that neither changes anything.
        parts = f"{micro} micro-batches on each of {shards} devices" if micro > 1 else f"each of {shards} devices"
        yield from multiple(path, rows, shards * micro * group, f"model.norm_group={group} on {parts}")


def _classes(config: RunConfig, block: BlockConfig, num_devices: int | None) -> Iterator[str]:
    path, legal = f"data.blocks.{block.name}.classes", SEQUENCES_PER_ITEM[block.stream]
    for index, part in enumerate(block.classes):
        yield from positive(f"{path}.{index}.rows", part.rows)
        yield from _rows_on_devices(config, f"{path}.{index}.rows", part.rows, block.stream, num_devices)
        for name, longest in (("source_lens", block.source_len), ("target_lens", block.target_len)):
            lens = getattr(part, name)
            most = max((legal.get(source.row, 1) for source in block.sources), default=1)
            if not 1 <= len(lens) <= most:
                yield f"{path}.{index}.{name}: found {len(lens)} lengths, expected 1 to {most}, one for each sequence of a pair"
            elif not 2 <= min(lens) <= max(lens) <= longest:
                yield f"{path}.{index}.{name}: found {lens}, expected 2 to the block's {name.removesuffix('s')}={longest}"
    if sum(part.rows for part in block.classes) != block.rows:
        found = " + ".join(str(part.rows) for part in block.classes)
        yield f"{path}: found {found} rows, expected the block's rows={block.rows} together"


def _length(config: RunConfig, path: str, length: int, *, codes: bool = False) -> Iterator[str]:
    """`path` ends in source_len or target_len. Image codes have places in a picture, which the 1-D buckets need not reach."""
    model = config.model
    rows = "num_source_positions" if path.endswith("source_len") else "num_target_positions"
    name, limit = min(((name, getattr(model, name)) for name in ((rows,) if codes else ("max_positions", rows))), key=lambda pair: pair[1])
    if not 2 <= length <= limit:
        yield f"{path}: found {length}, expected 2 to model.{name}={limit} tokens"


def _picture(config: RunConfig, path: str, image_px: int) -> Iterator[str]:
    stride, bucket = config.model.resnet.stride, config.model.image_bucket_size
    if stride < 1:
        return  # reported with the ResNet's own fields
    yield from multiple(path, image_px, stride, "the ResNet's stride")
    if image_px // stride > bucket:
        yield (
            f"{path}: found {image_px}, a grid of {image_px // stride} patches a side, expected at most "
            f"model.image_bucket_size={bucket}, which is {bucket * stride} px"
        )


def _sources(config: RunConfig, block: BlockConfig) -> Iterator[str]:
    path, legal = f"data.blocks.{block.name}.sources", SEQUENCES_PER_ITEM[block.stream]
    if not block.sources:
        yield f"{path}: found none, expected at least one line"
    seen: set[tuple[str, str, str]] = set()
    for index, source in enumerate(block.sources):
        line = f"{path}.{index}"
        if not source.dataset or not source.split:
            yield f"{line}: found dataset {source.dataset!r} and split {source.split!r}, expected both to be named"
        yield from positive(f"{line}.weight", source.weight)
        stages = len(config.data.stage_steps)
        if source.later_weights and (len(source.later_weights) != stages or min(source.later_weights) < 0):
            expected = f"none or {stages} of 0 or more, one for each of data.stage_steps"
            yield f"{line}.later_weights: found {source.later_weights}, expected {expected}"
        if source.row not in legal:
            yield f"{line}.row: found {source.row}, expected a row kind of stream {block.stream}: {', '.join(legal)}"
            continue
        key = (source.dataset, source.row, source.split)
        if key in seen:
            yield f"{line}: found {source.dataset}/{source.split} as {source.row} twice, expected one line with the whole weight"
        seen.add(key)
        yield from _codes_fit(config, line, source.row, image_px=block.image_px, target_path=f"data.blocks.{block.name}.target_len",
                              target_len=block.target_len)  # fmt: skip
        if source.row in ("grounding", "referring", "detection") and block.image_px > config.vocab.canvas_px:
            yield (
                f"data.blocks.{block.name}.image_px: found {block.image_px}, expected at most vocab.canvas_px={config.vocab.canvas_px}, "
                f"because boxes of {source.row} rows have no bins beyond the canvas"
            )
    sequences = {legal[source.row] for source in block.sources if source.row in legal}
    if len(sequences) > 1:
        yield f"{path}: found row kinds of {sorted(sequences)} sequences an item, expected one number, because a block's shapes are static"


def _codes_fit(config: RunConfig, line: str, row: str, *, image_px: int, target_path: str, target_len: int) -> Iterator[str]:
    """A code target is the whole grid and EOS; the hidden square is the picture's central half, which the codes must cover."""
    if row in ("painting", "image_generation"):
        needed = config.model.code_grid**2 + 1
        if target_len < needed:
            yield f"{target_path}: found {target_len}, expected at least {needed}, model.code_image_px's grid of codes and EOS"
        return
    if row != "image_infilling":
        return
    needed = config.model.code_grid**2 + 1
    if target_len < needed:
        yield f"{target_path}: found {target_len}, expected at least {needed}, model.code_image_px's grid of codes and EOS"
    if image_px != 2 * config.model.code_image_px:
        yield (
            f"{line}: found a picture of {image_px} px, expected {2 * config.model.code_image_px}, twice model.code_image_px="
            f"{config.model.code_image_px}, because the codes stand for the central half of its side"
        )


def _init(config: RunConfig) -> Iterator[str]:
    init = config.init
    yield from _parts("init.parts", init.parts)
    if init.parts and not init.checkpoint:
        yield f"init.parts: found {', '.join(init.parts)} without init.checkpoint, expected the run to take them from, or no parts"
    if config.checkpoint.content == "trained":
        found, optimizer = "checkpoint.content: found trained", config.optimizer
        if not init.checkpoint:
            yield (
                f"{found} without init.checkpoint, expected the run that has what stays as it is (--config.init.checkpoint=RUN), or "
                "checkpoint.content=all"
            )
        elif not optimizer.trained and not optimizer.frozen:
            yield (
                f"{found} with nothing frozen, so that a checkpoint would hold everything, expected optimizer.trained (what learns alone, "
                "as **/lora) or optimizer.frozen to name something, or checkpoint.content=all"
            )


def _parts(path: str, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name not in MODEL_PARTS:
            yield f"{path}: found {name}, expected parts of the model; {nearest(name, MODEL_PARTS)}"


def _eval(config: RunConfig) -> Iterator[str]:
    plan = config.eval
    yield from positive("eval.batch_rows", plan.batch_rows)
    yield from at_least("eval.bootstrap_samples", plan.bootstrap_samples, 0)
    yield from at_least("eval.report_examples", plan.report_examples, 0)
    yield from at_least("eval.every_steps", plan.every_steps, 0)
    yield from at_least("eval.loss_every_steps", plan.loss_every_steps, 0)
    if plan.every_steps and not plan.sets:
        yield f"eval.every_steps: found {plan.every_steps} without eval.sets, expected 0 or at least one set"
    if not plan.sets:
        return
    yield from _length(config, "eval.source_len", plan.source_len)
    yield from _length(config, "eval.target_len", plan.target_len, codes=all(row.task in CODE_TASKS for row in plan.sets))
    yield from _picture(config, "eval.image_px", plan.image_px)
    names = [row.name for row in plan.sets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"eval.sets: found the name {name} twice, expected names that differ"
    for row in plan.sets:
        path = f"eval.sets.{row.name}"
        if not row.name or not row.dataset or not row.split:
            yield f"{path}: found name {row.name!r}, dataset {row.dataset!r}, split {row.split!r}, expected all three to be named"
        if row.task not in TASK_NAMES:
            yield f"{path}.task: found {row.task}, expected a task of the table; {nearest(row.task, TASK_NAMES)}"
        yield from at_least(f"{path}.limit", row.limit, 0)
        yield from _codes_fit(config, path, row.task, image_px=plan.image_px, target_path="eval.target_len", target_len=plan.target_len)
    judges = plan.pictures
    if bool(judges.images) != bool(judges.texts):
        yield f"eval.pictures: found images={judges.images!r} and texts={judges.texts!r}, expected both networks, or none"
    if judges.real and not judges.features:
        yield f"eval.pictures.real: found {judges.real} without eval.pictures.features, expected the network whose statistics they are"
    if any(row.task in BOX_TASKS for row in plan.sets) and plan.image_px > config.vocab.canvas_px:
        limit = f"vocab.canvas_px={config.vocab.canvas_px}"
        yield f"eval.image_px: found {plan.image_px}, expected at most {limit}, beyond which boxes have no bins"
