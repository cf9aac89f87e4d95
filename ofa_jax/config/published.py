"""The rows of OFA's published tables: what each was measured with, and what everybody says of it.

`launch/eval.py --reproduce=ROW` evaluates one. A row's name is `task/size/column`. Sources of settings: the official evaluation scripts
(run_scripts/**/evaluate_*.sh of OFA-Sys/OFA) and its README. Sources of numbers stand with each. Numbers that are known from the paper
alone (arXiv 2202.03052), whose tables could not be read again, are marked as unverified and decide a band only where nothing else is known.

Left out: SPICE (no metric of ours), the paper's ablations, and zero-shot results, of whose prompts for GLUE the released code says nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Literal

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig

Kind = Literal["table", "released", "variant", "independent", "unverified"]
# Who says a number: the README's table of results; what the README says that a released checkpoint gives; the same for another recipe than
# the row's; somebody else's evaluation of a released checkpoint; the paper, from memory.
_OF_THE_BAND: tuple[Kind, ...] = ("table", "released")

DATA = "{data}"  # stands in decode settings and commands for the folder of the data (`data.dir`)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number that somebody printed for a row, in the row's unit."""

    value: float
    kind: Kind
    source: str


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One number of a published table, and everything that an evaluation must share with it to be compared."""

    name: str
    config: str  # file below the repository
    arg: str  # of its `get_config`
    eval_set: EvalSetConfig
    prompt: str  # what the decoder reads before it answers: none, source or source_eos (official prompt_type none, prev_output, src)
    image_px: int  # side of the network input; 0 for texts
    decode: str  # as `--decode` has it
    metric: str  # a name of `eval.scoring.METRICS`; empty where nobody has the labels, or no metric of ours needs only the outputs
    scale: float  # our metric times this is in the row's unit
    unit: str
    figures: tuple[Figure, ...]  # the first is the one that is usually quoted
    margin: float  # of the band, in the row's unit
    data: str  # the command that prepares the set
    notes: tuple[str, ...] = ()  # what differs from the published protocol, or is to be known
    leaderboard: str = ""  # where the file of answers is uploaded, as the labels are not public; empty: they are
    needs: str = ""  # why the number is not one of a single command; empty: it is
    digest: str = ""  # of the checkpoint that the row is of; empty: any, as the digests of the released ones are not known

    @property
    def band(self) -> tuple[float, float]:
        """The lowest and the highest value that count as reproduced: from the lowest to the highest figure that README or released
        checkpoints have (of the unverified ones where there is none), and `margin` more on both sides."""
        values = [f.value for f in self.figures if f.kind in _OF_THE_BAND] or [f.value for f in self.figures if f.kind == "unverified"]
        return round(min(values) - self.margin, 6), round(max(values) + self.margin, 6)


# Margins. mmpretrain evaluated converted base checkpoints (its configs/ofa): RefCOCO testA 90.49 and testB 83.63 against 90.67 and 83.30,
# BLEU-4 42.64 against 42.8, CIDEr 144.50 against 146.7. So half a point covers what another implementation makes of shares of correct
# answers and of BLEU, and two and a half of CIDEr. Nobody re-evaluated METEOR and ROUGE: taken as BLEU.
_MARGIN, _CIDER_MARGIN = 0.5, 2.5

_README, _SCRIPT = "README of OFA-Sys/OFA, table of results", "README of OFA-Sys/OFA, section on the task"
_PAPER, _OTHERS = "arXiv 2202.03052, from memory", "mmpretrain, configs/ofa, converted checkpoint"
_PERCENT = "%"
_EVAL_AI = "https://eval.ai/web/challenges/challenge-page/830/overview"

# README's table by size: CIDEr by cross-entropy and by reward; VQA test-dev and test-std; SNLI-VE validation and test; RefCOCO and RefCOCO+
# val, testA and testB; RefCOCOg val-u and test-u.
_TABLE = {
    "tiny": ((119.0, 128.7), (70.3, 70.4), (85.3, 85.2), (80.20, 84.07, 75.00), (68.22, 75.13, 57.66), (72.02, 69.74)),
    "medium": ((130.4, 140.3), (75.4, 75.5), (86.6, 87.0), (85.34, 87.68, 77.92), (76.09, 83.04, 66.25), (78.76, 78.58)),
    "base": ((138.2, 146.7), (78.0, 78.1), (89.3, 89.2), (88.48, 90.67, 83.30), (81.39, 87.15, 74.29), (82.29, 82.31)),
    "large": ((142.2, 150.7), (80.4, 80.7), (90.3, 90.2), (90.05, 92.93, 85.26), (85.80, 89.87, 79.22), (85.89, 86.55)),
    "huge": ((145.3, 154.9), (82.0, 82.0), (91.0, 91.2), (92.04, 94.03, 88.44), (87.86, 91.70, 80.71), (88.07, 88.78)),
}
# The paper's table of captions by size: BLEU-4 and METEOR by cross-entropy, and by reward; its CIDErs are README's but for `_MORE`.
_CAPTION_WORDS = {
    "tiny": ((35.9, 28.1), (38.1, 29.2)),
    "medium": ((39.1, 30.0), (41.4, 30.8)),
    "base": ((41.0, 30.9), (42.8, 31.7)),
    "large": ((42.4, 31.5), (43.6, 32.2)),
    "huge": ((43.9, 31.8), (44.9, 32.5)),
}
# What others say of a row than its table.
_MORE = {
    "coco_caption_reward/medium/cider": (Figure(140.7, "unverified", _PAPER),),
    "coco_caption_reward/base/cider": (
        Figure(146.4, "released", "README of OFA-Sys/OFA, news of the base checkpoint"),
        Figure(144.50, "independent", f"{_OTHERS} (which stage is not said)"),
    ),
    "coco_caption_reward/base/bleu4": (Figure(42.64, "independent", f"{_OTHERS} (which stage is not said)"),),
    "coco_caption_reward/large/cider": (Figure(149.6, "released", "README of OFA-Sys/OFA, first released checkpoint"),),
    "vqa_v2/base/test-dev": (Figure(78.00, "independent", f"{_OTHERS} (which split is not said)"),),
    "vqa_v2/base/test-std": (Figure(78.07, "released", _SCRIPT),),
    "vqa_v2/large/test-dev": (Figure(79.87, "released", _SCRIPT), Figure(80.3, "unverified", _PAPER)),
    "vqa_v2/large/test-std": (
        Figure(80.02, "released", _SCRIPT),
        Figure(80.67, "variant", "README_EncouragingLoss of OFA-Sys/OFA"),
        Figure(80.5, "unverified", _PAPER),
    ),
    "refcoco/base/testA": (Figure(90.49, "independent", _OTHERS),),
    "refcoco/base/testB": (Figure(83.63, "independent", _OTHERS),),
}

_PREPARE = "python launch/prepare.py build"
_COCO = f"{_PREPARE} coco_karpathy --dataset=coco_captions --source=COCO --data_dir={DATA}"
_CAPTION_NOTE = (
    "published captions were cut into words by pycocoevalcap's PTB tokenizer (Java), ours by a rule of our own (ofa_jax/metrics/words.py): "
    "how far the two are apart on COCO is not known"
)
_OBJECTS_NOTE = (
    "the released checkpoints read VinVL's object labels behind each question and want them in evaluation too (issue 189 of OFA-Sys/OFA); "
    "records have none, so expect less of those; a checkpoint of configs/finetune/vqa_v2.py was trained without"
)
_VALIDATION_NOTE = (
    "published on some 10,000 questions of val that OFA kept out of training, whose list is in its own files alone; here 10,000 spread "
    "over the public val, most of which the released checkpoints were trained on"
)
_SIZE_NOTE = "which size the paper's table is of is not known; the released script is of large"


def _captions() -> Iterator[PublishedRow]:
    beam = "beam:beam,beam=5,max_len=16,no_repeat_ngram=3"  # evaluate_caption.sh
    huge = "beam:beam,beam=10,max_len=16,no_repeat_ngram=3,temperature=0.98,lenpen=0.98"  # README, for huge
    for stage, task in enumerate(("coco_caption", "coco_caption_reward")):
        for size, table in _TABLE.items():
            bleu4, meteor = _CAPTION_WORDS[size][stage]
            columns = [
                ("cider", "cider", "CIDEr-D x 100", Figure(table[0][stage], "table", _README), _CIDER_MARGIN, "test"),
                ("bleu4", "bleu4", "BLEU-4 x 100", Figure(bleu4, "unverified", _PAPER), _MARGIN, "test"),
                ("meteor", "meteor", "METEOR x 100", Figure(meteor, "unverified", _PAPER), _MARGIN, "test"),
            ]
            if (task, size) == ("coco_caption", "large"):
                about = Figure(139.5, "released", f"{_SCRIPT}: about, by stage 1's script")
                columns.append(("cider-val", "cider", "CIDEr-D x 100", about, _CIDER_MARGIN, "validation"))
            for column, metric, unit, figure, margin, split in columns:
                name = f"{task}/{size}/{column}"
                notes = (_CAPTION_NOTE, *(("METEOR 1.5 is its authors' program, and needs Java",) if metric == "meteor" else ()))
                if split == "validation":
                    notes += ("published with the word counts of a file (coco-valid-words.p); here they are those of the set's captions",)
                yield PublishedRow(
                    name, f"configs/finetune/{task}.py", f"size={size}",
                    EvalSetConfig(f"coco/{split}", "short_captioning", "coco_captions", split), "none", 480,
                    huge if size == "huge" else beam, metric, 100.0, unit, (figure, *_MORE.get(name, ())), margin,
                    _COCO, notes,
                )  # fmt: skip


def _questions() -> Iterator[PublishedRow]:
    answers = f"answers={DATA}/vqa_v2/answers.txt"
    ways = {"vqa_v2": f"all-candidate:score,{answers}", "vqa_v2_beam": f"trie:beam,beam=5,normalise=false,{answers}"}
    script = {  # README's numbers of the released checkpoint of large by way to decode: validation, test-dev, test-std
        "vqa_v2": (80.82, 79.87, 80.02),
        "vqa_v2_beam": (80.15, 79.36, 79.48),
    }
    for task, decode in ways.items():
        for size in _TABLE if task == "vqa_v2" else ("large",):
            for place, column in enumerate(("val", "test-dev", "test-std")):
                name, hidden = f"{task}/{size}/{column}", column != "val"
                if task == "vqa_v2" and hidden:
                    figures: tuple[Figure, ...] = (Figure(_TABLE[size][1][place - 1], "table", _README), *_MORE.get(name, ()))
                elif size == "large":
                    figures = (Figure(script[task][place], "released", _SCRIPT),)
                else:
                    continue
                split = "test" if hidden else "validation"
                files = "ofa_vqa --row=answer --option=splits=test=vqa_test.tsv" if hidden else "vqa_v2_splits"
                source = "FOLDER" if hidden else "VQA"
                yield PublishedRow(
                    name, "configs/finetune/vqa_v2.py", f"size={size}",
                    EvalSetConfig(f"vqa_v2/{split}", "answering", "vqa_v2", split, limit=0 if hidden else 10_000), "source", 480, decode,
                    "" if hidden else "vqa_accuracy", 100.0, _PERCENT, figures, _MARGIN,
                    f"{_PREPARE} {files} --dataset=vqa_v2 --source={source} --data_dir={DATA}",
                    (_OBJECTS_NOTE,) if hidden else (_OBJECTS_NOTE, _VALIDATION_NOTE), _EVAL_AI if hidden else "",
                )  # fmt: skip


def _regions_and_statements() -> Iterator[PublishedRow]:
    unc = {"val": "validation", "testA": "test_a", "testB": "test_b"}
    umd = {"val-u": "validation", "test-u": "test"}
    sets = (("refcoco", "refcoco_unc", 3, unc), ("refcoco_plus", "refcoco_plus_unc", 4, unc), ("refcocog", "refcocog_umd", 5, umd))
    for size, table in _TABLE.items():
        for data, made, of_table, splits in sets:
            for (column, split), value in zip(splits.items(), table[of_table], strict=True):
                name = f"{data}/{size}/{column}"
                yield PublishedRow(
                    name, "configs/finetune/refcoco.py", f"data={data},size={size}",
                    EvalSetConfig(f"{data}/{split}", "grounding", data, split), "none", 512,
                    "beam:beam,beam=5,no_repeat_ngram=3",  # evaluate_refcoco.sh; four ids, whatever the setting says
                    "acc_at_iou_50", 100.0, _PERCENT, (Figure(value, "table", _README), *_MORE.get(name, ())), _MARGIN,
                    f"{_PREPARE} {made} --dataset={data} --source=REFER --data_dir={DATA}",
                )  # fmt: skip
        for (column, split), value in zip((("val", "validation"), ("test", "test")), table[2], strict=True):
            yield PublishedRow(
                f"snli_ve/{size}/{column}", "configs/finetune/snli_ve.py", f"size={size}",
                EvalSetConfig(f"snli_ve/{split}", "entailment", "snli_ve", split), "source", 480, "all-candidate:score,answers=task",
                "accuracy", 100.0, _PERCENT, (Figure(value, "table", _README),), _MARGIN,
                f"{_PREPARE} snli_ve --source=SNLI_VE --data_dir={DATA}",
                ("the question has the caption as premise, as in the released recipe",),
            )  # fmt: skip


def _texts() -> Iterator[PublishedRow]:
    glue = {"sst2": 96.6, "rte": 91.0, "mrpc": 91.7, "qqp": 92.5, "mnli": 90.2, "qnli": 94.8}
    for data, value in glue.items():
        split = "validation_matched" if data == "mnli" else "validation"
        more = ("taken to be of MNLI's matched set",) if data == "mnli" else ()
        yield PublishedRow(
            f"glue/large/{data}", "configs/finetune/glue.py", f"data={data},size=large",
            EvalSetConfig(f"{data}/{split}", data, data, split), "source_eos", 0, "trie:score,answers=task",
            "accuracy", 100.0, _PERCENT, (Figure(value, "unverified", _PAPER),), _MARGIN,
            f"{_PREPARE} {data} --source=GLUE --data_dir={DATA}",
            (_SIZE_NOTE, "published is the best on this set of a grid of rates, epochs and batches", *more),
        )  # fmt: skip
    rouge = {"rouge_l": (Figure(36.43, "released", f"{_SCRIPT}: about"), Figure(37.11, "unverified", _PAPER))}
    rouge |= {"rouge_1": (Figure(39.81, "unverified", _PAPER),), "rouge_2": (Figure(20.66, "unverified", _PAPER),)}  # type: ignore[dict-item]
    for column, figures in rouge.items():
        yield PublishedRow(
            f"gigaword/large/{column}", "configs/finetune/gigaword.py", "size=large",
            EvalSetConfig("gigaword/test", "summarisation", "gigaword", "test"), "none", 0,
            "beam:beam,beam=6,lenpen=0.7,max_len=32,no_repeat_ngram=3",  # evaluate_gigaword.sh
            f"gigaword_{column}", 100.0, f"{column.replace('_', '-').upper()} F1 x 100", figures, _MARGIN,
            f"{_PREPARE} gigaword --source=GIGAWORD --data_dir={DATA}", (_SIZE_NOTE,),
        )  # fmt: skip


def _classes_and_paintings() -> Iterator[PublishedRow]:
    figures = (
        Figure(85.0, "released", f"{_SCRIPT}: a little above the paper's"),
        Figure(85.6, "variant", "README_EncouragingLoss of OFA-Sys/OFA"),
        Figure(85.6, "unverified", _PAPER),
    )
    yield PublishedRow(
        "imagenet/large/top1", "configs/finetune/imagenet.py", "size=large",
        EvalSetConfig("imagenet/validation", "classification", "imagenet", "validation"), "none", 480,
        f"all-candidate:score,answers={DATA}/imagenet/answers.txt",  # evaluate_imagenet.sh
        "accuracy", 100.0, _PERCENT, figures, _MARGIN, f"{_PREPARE} imagenet --source=ILSVRC --data_dir={DATA}", (_SIZE_NOTE,),
    )  # fmt: skip
    needs = {
        "fid": "an Inception network's features (--config.eval.pictures.features=FILE.py:function)",
        "clip_score": "CLIP's two encoders (--config.eval.pictures.images=FILE.py:function and .texts=)",
        "inception_score": "an Inception network's probabilities (--config.eval.pictures.probabilities=FILE.py:function)",
    }
    clip = (Figure(34.0, "released", f"{_SCRIPT}: at least about, on validation, after stage 2"), Figure(34.4, "unverified", _PAPER))
    paintings = {"fid": (Figure(10.5, "unverified", _PAPER),), "clip_score": clip, "inception_score": (Figure(31.1, "unverified", _PAPER),)}
    for column, found in paintings.items():
        yield PublishedRow(
            f"image_generation/large/{column}", "configs/finetune/image_generation.py", "size=large",
            EvalSetConfig("paintings/test", "image_generation", "coco_captions", "test"), "none", 0,
            "drawn:sample,beam=24,top_k=256,max_len=1024,seed=42",  # evaluate_image_gen.sh
            "", 1.0, column, found, _MARGIN, _COCO, (_SIZE_NOTE,),
            needs=f"{needs[column]} and a scorer that chooses of 24 pictures (--decode=best:sample,beam=24,...,scorer=FILE.py:function); "
            f"python launch/eval.py --config=configs/finetune/image_generation_reward.py takes them",
        )  # fmt: skip


ROWS: dict[str, PublishedRow] = {
    row.name: row for family in (_captions, _questions, _regions_and_statements, _texts, _classes_and_paintings) for row in family()
}


def find_row(name: str) -> PublishedRow:
    """Returns the row of that name. Raises ConfigError, with the nearest names and the form of all of them, where there is none."""
    if name in ROWS:
        return ROWS[name]
    close = difflib.get_close_matches(name, ROWS, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(f"--reproduce: found the row {name!r}; {hint}expected one of {', '.join(_forms())} (--reproduce=list has them all)")


def _forms() -> list[str]:
    """The names of all rows, those that differ in their size or column alone as one: refcoco/(base|large)/(val|testA)."""
    columns: dict[tuple[str, str], list[str]] = {}
    for row in ROWS.values():
        task, size, column = row.name.split("/")
        columns.setdefault((task, size), []).append(column)
    sizes: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (task, size), found in columns.items():
        sizes.setdefault((task, tuple(found)), []).append(size)
    return [f"{task}/{_either(of)}/{_either(found)}" for (task, found), of in sizes.items()]


def _either(words: list[str] | tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"({'|'.join(words)})"
