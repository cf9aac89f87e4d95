"""The `:debug` variant of every config: the same run in seconds on a CPU, on generated data.

What changes, so that what writes and reads the fixtures agrees with the configs:

- **Data.** `data.dir` becomes `FIXTURES_DIR`. A launch script that finds `uses_fixtures(config)` lets `ofa_jax.prepare.fixtures.write`
  generate that folder when it is missing; nothing is downloaded. It has the quickstart's layout: `easy_vqa` (questions; splits train,
  test), `scenes` (captions, regions, questions, objects, codes; splits train, validation), `prose` (splits train, validation),
  `tokenizer.model` (a SentencePiece model of `FIXTURE_VOCAB.num_text` ids) and `codebook.npz` (`FIXTURE_VOCAB.num_codes` centres of
  4x4 px).
- **Mixture.** Every block stays, with its stream, pairs per image and augmentation, at 8 rows of 64 px (8, so that 8 fake devices can
  share them); its lines are replaced by one fixture line for each row kind that it had. Questions have no objects.
- **Model.** Width 64, at most two layers of each stack in the config's proportion, one narrow block for each ResNet stage; stride,
  regularisation, normalisation and implementation choices stay, because they are what a debug run is meant to exercise.
- **Loss.** A constraint range becomes that of the fixtures' image codes; chunks of logits are of at most 16 positions.
- **Run.** 2 steps from drawn parameters, a workdir of its own, evaluation of at most 8 examples a set.

With `own_data` the run reads what was prepared for the config itself, and so every shape that the data has stays the config's: vocabulary,
picture sides, lengths, the grid of image codes with the positions that the model has for them, evaluation sets. Small are only the model's
width and depth and the rows, 8 a block; length classes go, so that each block has one program to compile and any number of records will do.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import parse_arg
from ofa_jax.config.rows import GLUE, PRETRAINING_ROWS
from ofa_jax.config.schema import (
    AnyRun,
    BlockConfig,
    EvalSetConfig,
    InitConfig,
    LengthClass,
    ModelConfig,
    RunConfig,
    SourceConfig,
    VocabConfig,
    VQGANRunConfig,
)

FIXTURES_DIR = "data/fixtures"
FIXTURE_VOCAB = VocabConfig(
    tokenizer="sentencepiece",
    path=f"{FIXTURES_DIR}/tokenizer.model",
    num_text=400,
    num_codes=32,
    num_bins=64,
    canvas_px=64,
    pad_multiple=16,
)
FIXTURE_IMAGE_PX = 64
DEBUG_STEPS = 2
DEBUG_ROWS = 8

_FIXTURE_OF_ROW = {
    "caption": "scenes",
    "question": "easy_vqa",
    "grounding": "scenes",
    "detection": "scenes",
    "image_infilling": "scenes",
    "text_infilling": "prose",
    "short_caption": "scenes",
    "answer": "easy_vqa",
    "referring": "scenes",
    # Of fine-tuning; what is no scene and no shape is made where a config needs it (`prepare/builders/downstream`).
    "entailment": "statements",
    "class_name": "classes",
    "painting": "paintings",
    "summary": "headlines",
    **{task: task for task in GLUE},
}
# Text tokens of the fixtures' longest instruction and target by stream: 400 pieces split words finely, and 8x8 codes and EOS make 65.
_LENGTHS = {"pairs": (64, 48), "images": (32, 72), "text": (96, 72)}
_PROMPTED_LENGTHS = (64, 8)  # of rows whose decoder reads the source first
_EVAL_LIMIT = 8
_EVAL_SETS = (
    EvalSetConfig("vqa/easy_vqa/test", "vqa", "easy_vqa", "test", limit=_EVAL_LIMIT),
    EvalSetConfig("captioning/scenes/validation", "captioning", "scenes", "validation", limit=_EVAL_LIMIT),
    EvalSetConfig("grounding/scenes/validation", "grounding", "scenes", "validation", limit=_EVAL_LIMIT),
)


Run = TypeVar("Run", RunConfig, VQGANRunConfig)


def with_arg(config: Run, arg: str) -> Run:
    """Returns the variant of `config` that the mini-argument list `arg` asks for: `debug`, `steps=N`, `batch=N`, `shards=N`, or several of
    them (`debug,steps=10`).

    `own_data` (with `debug`): the data that was prepared for the config instead of the fixtures. `batch=N`: N times the rows of
    every block. `shards=N`: length classes are joined until N devices can share the rows of each.
    """
    options = parse_arg(arg, debug=False, own_data=False, steps=0, batch=0, shards=0)
    if options["own_data"] and (not options["debug"] or isinstance(config, VQGANRunConfig)):
        raise ConfigError(f"config argument {arg!r}: found own_data, expected it with debug, in a config of OFA")
    if options["batch"] or options["shards"]:
        config = with_rows(config, batch=options["batch"] or 1, shards=options["shards"] or 1)
    if options["debug"]:
        config = debug_vqgan(config) if isinstance(config, VQGANRunConfig) else debug(config, own_data=options["own_data"])
    return dataclasses.replace(config, steps=options["steps"]) if options["steps"] else config


def with_rows(config: Run, *, batch: int = 1, shards: int = 1) -> Run:
    """Returns `config` with `batch` times the rows of every block, in length classes that `shards` devices can share."""
    blocks = []
    for block in config.data.blocks:
        classes = tuple(dataclasses.replace(part, rows=part.rows * batch) for part in block.classes)
        blocks.append(dataclasses.replace(block, rows=block.rows * batch, classes=join_classes(classes, shards)))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, blocks=tuple(blocks)))


def join_classes(classes: tuple[LengthClass, ...], multiple: int) -> tuple[LengthClass, ...]:
    """Returns length classes whose rows are multiples of `multiple` where their sum is: a class that is not joins the next shorter one.

    A joined class is as long as the longer of the two in each of its lengths.
    """
    joined: list[LengthClass] = []
    for part in reversed(classes):
        if joined and joined[0].rows % multiple:
            longer = joined.pop(0)
            lens = {name: _longest(getattr(part, name), getattr(longer, name)) for name in ("source_lens", "target_lens")}
            part = LengthClass(part.rows + longer.rows, **lens)
        joined.insert(0, part)
    if len(joined) > 1 and joined[0].rows % multiple:  # what is left of the shortest
        first, second, *rest = joined
        lens = {name: _longest(getattr(first, name), getattr(second, name)) for name in ("source_lens", "target_lens")}
        joined = [LengthClass(first.rows + second.rows, **lens), *rest]
    return tuple(joined)


def _longest(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    size = max(len(a), len(b))
    return tuple(max(values[min(place, len(values) - 1)] for values in (a, b)) for place in range(size))


def uses_fixtures(config: AnyRun) -> bool:
    """Returns whether the run reads generated fixtures, which a launch script makes when they are missing."""
    return config.data.dir == FIXTURES_DIR


def datasets_of(config: AnyRun) -> tuple[str, ...]:
    """Returns the names of the data sets that a run's blocks draw from, in order."""
    return tuple(dict.fromkeys(source.dataset for block in config.data.blocks for source in block.sources))


def debug(config: RunConfig, *, own_data: bool = False) -> RunConfig:
    """Returns `config` shrunk to seconds on a CPU and pointed at the generated fixtures, as the module's docstring lists.

    own_data: what the config's own data decides stays, as the docstring says, to try what was prepared.
    """
    small = dataclasses.replace(
        config,
        name=f"{config.name}_debug",
        model=_small_model(config.model),
        data=dataclasses.replace(
            config.data, num_workers=0, stage_steps=(), blocks=tuple(_few_rows(block) for block in config.data.blocks)
        ),
        loss=dataclasses.replace(config.loss, logit_chunk=min(config.loss.logit_chunk, 16)),
        mesh=dataclasses.replace(config.mesh, data=-1, fsdp=1, tensor=1),
        checkpoint=dataclasses.replace(
            config.checkpoint, keep_best=0, best_metric="", content="all"
        ),  # sets are others, and there is no base
        init=InitConfig(),  # other runs' parameters have another shape
        eval=dataclasses.replace(
            config.eval,
            sets=tuple(dataclasses.replace(row, limit=_EVAL_LIMIT) for row in config.eval.sets),
            decode=config.eval.decode if own_data else tuple(way for way in config.eval.decode if _fits_fixtures(way)),
            batch_rows=8,
            bootstrap_samples=100,
            pictures=dataclasses.replace(config.eval.pictures, captioner=""),  # a run that need not be there
        ),
        steps=DEBUG_STEPS,
        precision="f32",
        log_every=1,
    )
    return small if own_data else _on_fixtures(small)


def _on_fixtures(config: RunConfig) -> RunConfig:
    """Returns a small run with every shape that its data decides as the fixtures have it."""
    codes = (FIXTURE_VOCAB.first_code_id, FIXTURE_VOCAB.first_bin_id)
    return dataclasses.replace(
        config,
        model=_with_fixture_positions(config.model),
        vocab=FIXTURE_VOCAB,
        data=dataclasses.replace(
            config.data,
            dir=FIXTURES_DIR,
            blocks=tuple(_fixture_block(block, config.model) for block in config.data.blocks),
            question_objects=0,  # no detector saw the fixtures
        ),
        loss=dataclasses.replace(
            config.loss,
            constraint_range=codes if config.loss.constraint_range else (),
            answers=config.loss.answers if config.loss.answers == "task" else "",  # files hold the answers of other data
        ),
        reward=tuple(
            dataclasses.replace(reward, frequencies=f"{FIXTURES_DIR}/scenes/frequencies-train.json" if reward.frequencies else "")
            for reward in config.reward
        ),
        eval=dataclasses.replace(
            config.eval,
            sets=_EVAL_SETS if _pretrains(config) else _own_sets(config),
            source_len=96,
            target_len=72,
            image_px=FIXTURE_IMAGE_PX,
        ),
    )


def _fits_fixtures(way: str) -> bool:
    """Whether a way to decode names no file of answers, which are those of other data."""
    return not any(field.startswith("answers=") and field != "answers=task" for field in way.split(","))


def _pretrains(config: RunConfig) -> bool:
    return any(source.row in PRETRAINING_ROWS for block in config.data.blocks for source in block.sources)


def _own_sets(config: RunConfig) -> tuple[EvalSetConfig, ...]:
    """The tasks of a fine-tuning run on the fixtures of its rows."""
    rows = dict.fromkeys(source.row for block in config.data.blocks for source in block.sources)
    tasks = dict.fromkeys(one.task for one in config.eval.sets)
    sets = []
    for task, row in zip(tasks, rows, strict=False):
        dataset = _FIXTURE_OF_ROW[row]
        split = "test" if dataset == "easy_vqa" else "validation"
        sets.append(EvalSetConfig(f"{task}/{dataset}/{split}", task, dataset, split, limit=_EVAL_LIMIT))
    return tuple(sets)


def debug_vqgan(config: VQGANRunConfig) -> VQGANRunConfig:
    """Returns `config` shrunk to seconds on a CPU: the fixtures' scenes in 8 rows of 32 px, 8 channels, one block a level, few codes;
    levels, quantiser, losses and transform stay. A discriminator has its say from the second step on."""
    loss = config.loss
    return dataclasses.replace(
        config,
        name=f"{config.name}_debug",
        model=dataclasses.replace(config.model, width=8, num_blocks=1, latent_width=8, code_width=8, num_codes=32, norm_groups=4),
        data=dataclasses.replace(
            config.data,
            dir=FIXTURES_DIR,
            num_workers=0,
            blocks=tuple(
                dataclasses.replace(block, rows=DEBUG_ROWS, image_px=32, sources=(SourceConfig("scenes", "picture"),))
                for block in config.data.blocks
            ),
        ),
        loss=dataclasses.replace(loss, discriminator_width=8, discriminator_layers=1, discriminator_start=1, perceptual=""),
        mesh=dataclasses.replace(config.mesh, data=-1, fsdp=1, tensor=1),
        init=InitConfig(),
        eval=dataclasses.replace(config.eval, dataset="scenes", split="validation", limit=8, image_px=32, batch_rows=8, drawn=4),
        steps=DEBUG_STEPS,
        precision="f32",
        log_every=1,
    )


def _small_model(model: ModelConfig) -> ModelConfig:
    deepest = max(model.encoder_layers, model.decoder_layers)
    return dataclasses.replace(
        model,
        width=64,
        ffn_width=256,
        num_heads=4,
        encoder_layers=max(1, round(2 * model.encoder_layers / deepest)),
        decoder_layers=max(1, round(2 * model.decoder_layers / deepest)),
        resnet=dataclasses.replace(model.resnet, blocks=(1,) * len(model.resnet.blocks), base_width=8),
        norm_group=min(model.norm_group, 1),
    )


def _with_fixture_positions(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(
        model,
        token_bucket_size=64,
        image_bucket_size=16,
        max_positions=128,
        num_source_positions=130,
        num_target_positions=130,
        code_image_px=FIXTURE_IMAGE_PX // 2,
        code_stride=4,
        code_filler_id=256,
    )


def _few_rows(block: BlockConfig) -> BlockConfig:
    sources = tuple(dataclasses.replace(source, later_weights=()) for source in block.sources)
    return dataclasses.replace(block, rows=DEBUG_ROWS, sources=sources, classes=())


def _fixture_block(block: BlockConfig, model: ModelConfig) -> BlockConfig:
    source_len, target_len = _PROMPTED_LENGTHS if block.prompt_len else _LENGTHS[block.stream]
    grid = FIXTURE_IMAGE_PX // model.resnet.stride
    kinds = dict.fromkeys(source.row for source in block.sources)
    return dataclasses.replace(
        block,
        source_len=source_len,
        target_len=target_len,
        sources=tuple(SourceConfig(dataset=_FIXTURE_OF_ROW[kind], row=kind) for kind in kinds),
        image_px=FIXTURE_IMAGE_PX if block.image_px else 0,
        num_patches=grid**2 // 2 if block.num_patches else 0,
    )
