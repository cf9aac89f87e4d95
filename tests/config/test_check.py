"""Cross-field checks: every rule has a config that breaks it, and the sentence names field, found and expected."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ofa_jax.config.check import check, problems, unreadable_sets
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.findings import resolve_mesh
from ofa_jax.config.load import override, read_config
from ofa_jax.config.rows import SEQUENCES_PER_ITEM, TASK_NAMES
from ofa_jax.config.schema import EvalSetConfig, LossConfig, SourceConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nano():
    return read_config(str(ROOT / "configs" / "quickstart.py"))


@pytest.fixture(scope="module")
def large():
    return read_config(str(ROOT / "configs" / "ofa_large.py"))


BROKEN = {
    "data.blocks.scenes.rand_augment=true": "data.blocks.scenes.rand_augment: found true with augment=resize, expected random_resize_crop",
    "data.blocks.scenes.augment=imagenet": "data.blocks.scenes.augment: found imagenet with rows grounding, question, expected",
    "data.blocks.captions.augment=imagenet": "data.blocks.captions.augment: found imagenet with model.pixel_scale=half, expected imagenet",
    "data.question_objects=-1": "data.question_objects: found -1, expected at least 0",
    "data.question_objects=30": "data.question_objects: found 30 without rows answer, whose questions alone have objects, expected 0",
    "steps=0": "steps: found 0, expected more than 0",
    "log_every=0": "log_every: found 0",
    "hang_s=-1": "hang_s: found -1.0, expected at least 0",
    "seed=-1": "seed: found -1, expected at least 0",
    "name=a/b": "name: found 'a/b', expected letters",
    "workdir=runs/{run}": "workdir: found 'runs/{run}'",
    "loss.label_smoothing=1": "loss.label_smoothing: found 1.0, expected a number from 0 to 1, 1 not included",
    "loss.logit_chunk=-1": "loss.logit_chunk: found -1",
    "loss.constraint_range=4": "loss.constraint_range: found (4,), expected none or two ids, a first from 4 and a larger end up to",
    "loss.constraint_range=3,9": "loss.constraint_range: found (3, 9)",
    "loss.constraint_range=9,9": "loss.constraint_range: found (9, 9)",
    "loss.constraint_range=4,99999": "loss.constraint_range: found (4, 99999)",
    "loss.drop_worst=1,0": "loss.drop_worst: found 1.0, expected a number from 0 to 1, 1 not included",
    "loss.drop_worst=0.2,-1": "loss.drop_worst: found -1, expected at least 0",
    "loss.drop_best=-0.1,0": "loss.drop_best: found -0.1",
    "loss.encouraging_log_end=1.1": "loss.encouraging_log_end: found 1.1, expected a number from 0 to 1",
    "loss.r_drop_alpha=-1": "loss.r_drop_alpha: found -1.0, expected at least 0",
    "optimizer.learning_rate=0": "optimizer.learning_rate: found 0.0, expected more than 0",
    "optimizer.warmup_fraction=2": "optimizer.warmup_fraction: found 2.0",
    "optimizer.beta2=1": "optimizer.beta2: found 1.0",
    "optimizer.ema_decay=-0.1": "optimizer.ema_decay: found -0.1",
    "optimizer.accumulate=0": "optimizer.accumulate: found 0, expected more than 0",
    "optimizer.accumulate=3": "rows: found 8, expected a multiple of 3 (optimizer.accumulate=3 micro-batches on each of 1 devices)",
    "guard.loss_factor=1": "guard.loss_factor: found 1.0, expected more than 1, or 0 for no limit",
    "guard.norm_factor=-2": "guard.norm_factor: found -2.0, expected more than 1, or 0 for no limit",
    "guard.deviations=-1": "guard.deviations: found -1.0, expected at least 0",
    "guard.window=0": "guard.window: found 0, expected more than 0",
    "guard.max_in_a_row=0": "guard.max_in_a_row: found 0, expected more than 0",
    "guard.rewinds=-1": "guard.rewinds: found -1, expected at least 0",
    "eval.loss_every_steps=-1": "eval.loss_every_steps: found -1, expected at least 0",
    "monitor.trace_step=-1": "monitor.trace_step: found -1, expected at least 0",
    "eval.every_steps=-1": "eval.every_steps: found -1, expected at least 0",
    "checkpoint.keep=0": "checkpoint.keep: found 0",
    "checkpoint.keep_every=-1": "checkpoint.keep_every: found -1, expected at least 0",
    "checkpoint.keep_every=750": "checkpoint.keep_every: found 750, expected a multiple of 500 (checkpoint.every_steps, where checkpoints",
    "checkpoint.keep_best=-1": "checkpoint.keep_best: found -1, expected at least 0",
    "checkpoint.keep_best=2": "checkpoint.best_metric: found '' with checkpoint.keep_best=2, expected both or neither",
    "checkpoint.best_metric=eval/vqa": "checkpoint.best_metric: found 'eval/vqa' with checkpoint.keep_best=0, expected both or neither",
    "checkpoint.lowest_is_best=true": "checkpoint.lowest_is_best: found true with checkpoint.keep_best=0, expected false",
    "checkpoint.deadline_s=0": "checkpoint.deadline_s: found 0.0, expected more than 0",
    "vocab.path=": "vocab.path: found nothing",
    "vocab.num_text=5": "vocab.num_text: found 5",
    "vocab.num_bins=1": "vocab.num_bins: found 1, expected at least 2",
    "vocab.pad_multiple=0": "vocab.pad_multiple: found 0",
    "vocab.canvas_px=32": "data.blocks.scenes.image_px: found 64, expected at most vocab.canvas_px=32",
    "model.num_heads=3": "model.width: found 128, expected a multiple of 3 (model.num_heads): nearest 126 or 129",
    "model.dropout=1": "model.dropout: found 1.0",
    "model.adapter_width=-1": "model.adapter_width: found -1, expected at least 0",
    "model.prompt_lens=4,-1": "model.prompt_lens: found (4, -1), expected no negative length",
    "model.prompt_dropout=1": "model.prompt_dropout: found 1.0",
    "model.encoder_layers=0": "model.encoder_layers: found 0",
    "model.resnet.blocks=": "model.resnet.blocks: found ()",
    "model.resnet.strides=1,2": "model.resnet.strides: found (1, 2), expected one positive stride for each of the 3 stages",
    "model.code_image_px=30": "model.code_image_px: found 30, expected a multiple of 4 (model.code_stride): nearest 28 or 32",
    "model.code_filler_id=257": "model.code_filler_id: found 257",
    "model.image_bucket_size=4": "model.code_image_px: found a code grid of 8 a side, expected at most model.image_bucket_size=4",
    "model.without=picture": "model.without: found picture, expected parts that a model may lack; did you mean pictures?",
    "model.without=pictures": "data.blocks.scenes.stream: found pairs, expected text, whose rows have no picture, because model.without=",
    "model.without=pictures,codes": "init.parts: found resnet, expected other parts, because model.without=pictures,codes",
    "model.without=codes": "data.blocks.infilling.sources: found rows image_infilling, whose targets are image codes, expected others",
    "mesh.data=0": "mesh.data: found 0",
    "mesh.fsdp=-1": "mesh: found -1 more than once",
    "mesh.tensor=3": "model.num_heads: found 4, expected a multiple of 3 (mesh.tensor=3 splits it): nearest 3 or 6",
    "mesh.fsdp=3": "model.width: found 128, expected a multiple of 3 (mesh.fsdp=3 splits it)",
    "data.dir=": "data.dir: found nothing",
    "data.prefetch=0": "data.prefetch: found 0",
    "data.max_reject_fraction=1.5": "data.max_reject_fraction: found 1.5",
    "data.max_epochs=-1": "data.max_epochs: found -1.0, expected at least 0",
    "data.blocks.scenes.rows=0": "data.blocks.scenes.rows: found 0",
    "data.blocks.scenes.name=captions": "data.blocks: found the name captions twice",
    "data.blocks.scenes.name=Q": "data.blocks: found the name 'Q'",
    "data.blocks.scenes.image_px=60": "image_px: found 60, expected a multiple of 16 (the ResNet's stride): nearest 48 or 64",
    "data.blocks.scenes.image_px=512": "a grid of 32 patches a side, expected at most model.image_bucket_size=16, which is 256 px",
    "data.blocks.scenes.num_patches=17": "num_patches: found 17, expected 0 (all) or at most 16",
    "data.blocks.scenes.source_len=257": "source_len: found 257, expected 2 to model.max_positions=256 tokens",
    "data.blocks.scenes.target_len=1": "target_len: found 1",
    "data.blocks.scenes.pairs_per_image=0": "pairs_per_image: found 0",
    "data.blocks.detection.pairs_per_image=2": "pairs_per_image: found 2, expected 1, because a row of stream images is one sequence",
    "data.blocks.infilling.target_len=64": "target_len: found 64, expected at least 65",
    "data.blocks.infilling.image_px=128": "found a picture of 128 px, expected 64, twice model.code_image_px=32",
    "data.blocks.prose.image_px=64": "image_px: found 64, expected 0, because a row of stream text has no picture",
    "data.blocks.scenes.sources.0.weight=0": "data.blocks.scenes.sources.0.weight: found 0.0, expected more than 0",
    "data.blocks.scenes.sources.1.row=question": "found scenes/train as question twice",
    "data.blocks.scenes.sources.0.row=detection": "found detection, expected a row kind of stream pairs: caption, question, grounding",
    "init.parts=resnett": "init.parts: found resnett, expected parts of the model; did you mean resnet?",
    "optimizer.frozen=encode": "optimizer.frozen: found encode, expected parts of the model; did you mean encoder?",
    "optimizer.frozen=encode/layers": "optimizer.frozen: found encode/layers, expected parts of the model; did you mean encoder?",
    "init.checkpoint=": "init.parts: found resnet without init.checkpoint",
    "objective=picture_words": "data.blocks.infilling: found rows without a whole picture, expected none for objective=picture_words",
    "eval.batch_rows=0": "eval.batch_rows: found 0",
    "eval.image_px=60": "eval.image_px: found 60",
    "eval.image_px=128": "eval.image_px: found 128, expected at most vocab.canvas_px=64, beyond which boxes have no bins",
    "eval.target_len=64": "eval.target_len: found 64, expected at least 65",
    "eval.pictures.images=clip.py:images": "eval.pictures: found images='clip.py:images' and texts='', expected both networks, or none",
    "eval.pictures.real=gt_stat.npz": "eval.pictures.real: found gt_stat.npz without eval.pictures.features",
    "eval.sets.0.task=vga": "task: found vga, expected a task of the table; did you mean vqa?",
    "eval.sets.0.split=": "expected all three to be named",
    "eval.sets.0.limit=-1": "limit: found -1, expected at least 0",
}


@pytest.mark.parametrize("flag", BROKEN)
def test_a_broken_field_is_named_in_one_sentence(nano, flag):
    path, _, text = flag.partition("=")
    found = list(problems(override(nano, [(path, text)])))
    assert any(BROKEN[flag] in sentence for sentence in found), found
    assert all("\n" not in sentence for sentence in found)
    with pytest.raises(ConfigError):
        check(override(nano, [(path, text)]))


def test_sets_that_need_a_part_which_the_model_lacks_are_named(nano):
    found = list(unreadable_sets(nano.eval.sets, dataclasses.replace(nano.model, without=("pictures", "codes"))))
    tasks = {one.name: one.task for one in nano.eval.sets}
    assert {line.split(": ")[0].split(".")[2] for line in found} == {name for name, task in tasks.items() if task != "text_infilling"}
    assert all(line.endswith("because model.without=pictures,codes") for line in found)
    codes = list(unreadable_sets(nano.eval.sets, dataclasses.replace(nano.model, without=("codes",))))
    assert codes and all("whose targets are image codes, expected another task" in line for line in codes)
    assert list(unreadable_sets(nano.eval.sets, nano.model)) == []
    text = read_config(str(ROOT / "configs" / "finetune" / "glue.py"))
    assert list(problems(text)) == []
    (sentence,) = problems(override(text, [("eval.sets.0.task", "vqa")]))
    assert sentence.startswith("eval.sets.rte/validation.task: found vqa, which reads pictures, expected one of text_infilling, ")


def test_what_pallas_does_not_do_is_refused(nano):
    assert not list(problems(override(nano, [("model.attention", "pallas")])))
    asked = [("model.attention", "pallas"), ("model.prompt_lens", "4,0"), ("model.attention_dropout", "0.1"), ("precision", "f64")]
    because = "because model.attention=pallas"
    found = " ".join(problems(override(nano, asked)))
    assert f"model.prompt_lens: found (4, 0), expected (0, 0), {because}" in found
    assert f"model.attention_dropout: found 0.1, expected 0, {because}" in found
    assert f"precision: found f64, expected bf16 or f32, {because}" in found


def test_what_is_trained_alone_is_saved_where_something_stays_and_lies_elsewhere(nano):
    light = [("checkpoint.content", "trained"), ("init.parts", "")]
    assert not list(problems(override(nano, light))), "its front is frozen, and taken from another run"
    (found,) = problems(override(nano, [*light, ("init.checkpoint", "")]))
    assert found.startswith("checkpoint.content: found trained without init.checkpoint, expected the run that has what stays as it is")
    (found,) = problems(override(nano, [*light, ("optimizer.frozen", "")]))
    assert found.startswith("checkpoint.content: found trained with nothing frozen, ") and "or checkpoint.content=all" in found
    assert not list(problems(override(nano, [*light, ("optimizer.frozen", ""), ("optimizer.trained", "**/lora")])))


def test_what_cudnn_does_not_do_is_refused(nano):
    assert not list(problems(override(nano, [("model.attention", "cudnn"), ("precision", "bf16")])))
    found = " ".join(problems(override(nano, [("model.attention", "cudnn"), ("model.attention_dropout", "0.1")])))
    assert "model.attention_dropout: found 0.1, expected 0, because model.attention=cudnn" in found
    assert "precision: found f32, expected bf16, because model.attention=cudnn" in found


@pytest.mark.parametrize(
    ("overrides", "num_devices", "sentence"),
    [
        ([], 3, "data.blocks.infilling.rows: found 256, expected a multiple of 3 (mesh data x fsdp = 3 x 1 devices share the rows)"),
        ([("mesh.fsdp", "3")], 8, "whose fixed axes take 3 devices, expected a divisor of the 8 there are"),
        ([("mesh.data", "4")], 8, "which takes 4 devices, expected the 8 devices there are"),
        ([("mesh.tensor", "32")], 32, "model.num_heads: found 16, expected a multiple of 32 (mesh.tensor=32 splits it): nearest 32"),
        (
            [("mesh.tensor", "16"), ("vocab.pad_multiple", "1")],
            16,
            "pads the vocabulary to 59457 rows, expected a multiple of mesh.fsdp x mesh.tensor = 1 x 16",
        ),
        (
            [("model.norm_group", "64")],
            8,
            "data.blocks.detection.classes.1.rows: found 64, expected a multiple of 512 (model.norm_group=64 on each of 8",
        ),
    ],
)
def test_layouts_that_do_not_divide(large, overrides, num_devices, sentence):
    found = list(problems(override(large, overrides), num_devices))
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({}, "optimizer.accumulate: found 4 with model.norm_group=0, whose statistics are of the whole batch, expected 1"),
        ({"model.image_norm": "frozen", "loss.drop_worst": "0.1,0"}, "found 4 with loss.drop_worst or loss.drop_best"),
        (
            {"model.norm_group": "16"},
            "rows: found 64, expected a multiple of 512 (model.norm_group=16 on 4 micro-batches on each of 8 devices)",
        ),
        ({"model.image_norm": "frozen"}, ""),
        ({"model.norm_group": "2"}, ""),
    ],
)
def test_what_accumulation_leaves_as_it_is(large, overrides, sentence):
    found = list(problems(override(large, [("optimizer.accumulate", "4"), *overrides.items()]), 8))
    assert any(sentence in problem for problem in found) if sentence else not found, found


def test_the_free_axis_takes_what_is_left(large):
    config = override(large, [("mesh.fsdp", "2"), ("mesh.tensor", "2")])
    assert resolve_mesh(config.mesh, 16) == {"data": 4, "fsdp": 2, "tensor": 2}
    assert resolve_mesh(config.mesh, None) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert list(problems(config, 16)) == []


def test_a_group_of_frozen_statistics_needs_no_division(large):
    config = override(large, [("model.norm_group", "64"), ("model.image_norm", "frozen")])
    assert list(problems(config, 8)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 1.5}, "steps: found 1.5, expected an integer"),
        ({"steps": True}, "steps: found True, expected an integer"),
        ({"precision": "fp8"}, "precision: found 'fp8', expected one of f32, bf16, f64"),
        ({"model": None}, "model: found None, expected a ModelConfig"),
        ({"name": 3}, "name: found 3, expected a text"),
        (
            {"loss": LossConfig(drop_worst=(0.2, 0.5))},
            "loss.drop_worst: found (0.2, 0.5), expected a finite number and an integer separated by commas",
        ),
    ],
)
def test_a_config_file_with_a_value_of_the_wrong_type(nano, change, sentence):
    assert list(problems(dataclasses.replace(nano, **change))) == [sentence]


def test_a_picture_words_run_has_none_of_the_token_losses():
    front = read_config(str(ROOT / "configs" / "quickstart_front.py"))
    (sentence,) = problems(override(front, [("loss.drop_best", "0.1,5")]))
    assert sentence == "loss.drop_best: found (0.1, 5), expected (0.0, 0) for objective=picture_words, whose rows are no tokens"


def test_the_options_of_the_loss_that_are_legal(nano):
    flags = {"constraint_range": "4,9", "drop_worst": "0.2,6000", "drop_best": "0.05,0", "encouraging_log_end": "1", "r_drop_alpha": "5"}
    assert list(problems(override(nano, [(f"loss.{name}", text) for name, text in flags.items()]))) == []


def test_wrong_types_inside_a_mixture(nano):
    block = dataclasses.replace(nano.data.blocks[0], sources=[SourceConfig("easy_vqa", "question")])
    config = dataclasses.replace(nano, data=dataclasses.replace(nano.data, blocks=(block,)))
    (sentence,) = problems(config)
    assert sentence.startswith("data.blocks.shapes.sources: found [SourceConfig(")
    assert sentence.endswith("expected a tuple of SourceConfig")


def test_an_empty_mixture_and_an_empty_block(nano):
    empty = dataclasses.replace(nano, data=dataclasses.replace(nano.data, blocks=()))
    assert "data.blocks: found none, expected at least one row block" in list(problems(empty))
    block = dataclasses.replace(nano.data.blocks[0], sources=())
    empty = dataclasses.replace(nano, data=dataclasses.replace(nano.data, blocks=(block,)))
    assert "data.blocks.shapes.sources: found none, expected at least one line" in list(problems(empty))


def test_eval_set_names_differ(nano):
    sets = (EvalSetConfig("a", "vqa", "easy_vqa", "test"), EvalSetConfig("a", "vqa", "scenes", "validation"))
    config = dataclasses.replace(nano, eval=dataclasses.replace(nano.eval, sets=sets))
    assert list(problems(config)) == ["eval.sets: found the name a twice, expected names that differ"]


def test_the_tables_agree_with_the_tasks():
    from ofa_jax.tasks import table

    assert tuple(table.TASK_NAMES) == TASK_NAMES
    assert {kind: len(tasks) for kind, tasks in table.ROWS.items()} == {
        kind: count for kinds in SEQUENCES_PER_ITEM.values() for kind, count in kinds.items()
    }


@pytest.mark.parametrize(
    ("every", "sentence"),
    [
        ("0", "checkpoint.keep_best: found 2 with eval.every_steps=0, expected an evaluation during training to judge by"),
        ("750", "eval.every_steps: found 750, expected a multiple of 500 (checkpoint.every_steps, so that what is evaluated is saved)"),
    ],
)
def test_the_best_checkpoints_need_an_evaluation_of_what_is_saved(nano, every, sentence):
    flags = [("checkpoint.keep_best", "2"), ("checkpoint.best_metric", "eval/vqa_accuracy/a"), ("eval.every_steps", every)]
    assert any(sentence in problem for problem in problems(override(nano, flags)))
    assert not list(problems(override(nano, [*flags, ("eval.every_steps", "1000")])))
