"""The public data sets of OFA's pretraining and of its tasks, by name: how each lies on disk, what is made of it, under which licence.

One command makes each: `python launch/prepare.py build <name> --source=<its files>`. Names of `SETS` are those of
`configs/mixtures/ofa_pretrain.py`; those of `DOWNSTREAM` are what OFA is fine-tuned and judged on, with all the splits that have labels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ofa_jax.prepare.layouts.base import Layout
from ofa_jax.prepare.layouts.coco import Coco
from ofa_jax.prepare.layouts.fashion_mnist import FashionMnist
from ofa_jax.prepare.layouts.glue import Glue
from ofa_jax.prepare.layouts.gqa import Gqa
from ofa_jax.prepare.layouts.image_folders import ImageFolders
from ofa_jax.prepare.layouts.imagenet_1k import ImageNet1k
from ofa_jax.prepare.layouts.objects365 import Objects365
from ofa_jax.prepare.layouts.ofa_downstream import (
    OfaCaptions,
    OfaClasses,
    OfaEntailment,
    OfaQuestions,
    OfaReferring,
    OfaSummaries,
)
from ofa_jax.prepare.layouts.ofa_tsv import OfaDetection, OfaImages, OfaText, OfaVisionLanguage
from ofa_jax.prepare.layouts.open_images import OpenImages
from ofa_jax.prepare.layouts.parallel_lines import ParallelLines
from ofa_jax.prepare.layouts.refcoco import RefCoco
from ofa_jax.prepare.layouts.snli_ve import SnliVe
from ofa_jax.prepare.layouts.table import ColumnTable, TextTable
from ofa_jax.prepare.layouts.text_lines import TextLines
from ofa_jax.prepare.layouts.visual_genome import VisualGenome
from ofa_jax.prepare.layouts.vqa_v2 import VqaV2
from ofa_jax.prepare.layouts.webdataset import WebDataset


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """One public data set."""

    layout: type[Layout]
    row: str  # row kind that is drawn of it, whose token lengths are counted; none are where `tasks/table.ROWS` lacks it
    page: str  # of the data set
    licence: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the layout
    build: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `BuildOptions`
    notes: tuple[str, ...] = ()


_BY_PICTURE = "that of each picture, by its owner; captions and addresses as the page says"
_CC_BY = "annotations CC BY 4.0; pictures under Flickr's terms of use"
_VG = "CC BY 4.0"
_LARGE = {"max_side_px": 1_024}  # more than any input needs: 480 px, and crops of it
_INFILLING = {"square_px": 256}  # OFA's infilling pictures are stored as squares of 256 px (its datasets.md)
_COCO, _VISUAL_GENOME = "https://cocodataset.org", "https://homes.cs.washington.edu/~ranjay/visualgenome/"
_REFER, _OPEN_IMAGES = "https://github.com/lichengunc/refer", "https://storage.googleapis.com/openimages/web/index.html"

SETS: dict[str, PublicSet] = {
    "cc12m": PublicSet(
        WebDataset, "caption", "https://github.com/google-research-datasets/conceptual-12m", _BY_PICTURE, build=_LARGE
    ),
    "cc3m": PublicSet(WebDataset, "caption", "https://ai.google.com/research/ConceptualCaptions/", _BY_PICTURE, build=_LARGE),
    "sbu": PublicSet(WebDataset, "caption", "https://www.cs.rice.edu/~vo9/sbucaptions/", _BY_PICTURE, build=_LARGE),
    "coco_captions": PublicSet(
        Coco, "caption", _COCO, _CC_BY, notes=("with --option=karpathy=dataset_coco.json train is train and restval, as OFA trains on",)
    ),
    "vg_captions": PublicSet(
        VisualGenome, "caption", _VISUAL_GENOME, _VG, {"what": "captions"}, notes=("regions of more than 16,384 px², each cut out",)
    ),
    "vqa_v2": PublicSet(
        VqaV2, "question", "https://visualqa.org/download.html", _CC_BY,
        notes=("answers are of the 3,129 most frequent of train, in every split",),
    ),
    "vg_qa": PublicSet(VisualGenome, "question", _VISUAL_GENOME, _VG, {"what": "questions"}),
    "gqa": PublicSet(Gqa, "question", "https://cs.stanford.edu/people/dorarad/gqa/", _VG, notes=("balanced questions",)),
    "refcoco": PublicSet(RefCoco, "grounding", _REFER, _CC_BY, {"subset": "refcoco"}),
    "refcoco_plus": PublicSet(RefCoco, "grounding", _REFER, _CC_BY, {"subset": "refcoco+"}),
    "refcocog": PublicSet(RefCoco, "grounding", _REFER, _CC_BY, {"subset": "refcocog"}),
    "vg_regions": PublicSet(
        VisualGenome, "grounding", _VISUAL_GENOME, _VG, {"what": "regions"}, notes=("regions of at most 16,384 px²",)
    ),
    "openimages": PublicSet(OpenImages, "detection", _OPEN_IMAGES, "annotations CC BY 4.0, pictures CC BY 2.0", build=_LARGE),
    "objects365": PublicSet(Objects365, "detection", "https://www.objects365.org", "CC BY 4.0, by its page", build=_LARGE),
    "vg_objects": PublicSet(VisualGenome, "detection", _VISUAL_GENOME, _VG, {"what": "objects"}),
    "coco_objects": PublicSet(Coco, "detection", _COCO, _CC_BY, {"what": "objects"}),
    "openimages_all": PublicSet(
        ImageFolders, "image_infilling", _OPEN_IMAGES, "pictures CC BY 2.0", build=_INFILLING,
    ),
    "yfcc15m": PublicSet(
        WebDataset, "image_infilling", "https://github.com/openai/CLIP/blob/main/data/yfcc100m.md", "Creative Commons, by picture",
        {"captions": False}, _INFILLING,
    ),
    "imagenet21k": PublicSet(
        ImageFolders, "image_infilling", "https://image-net.org/download-images", "non-commercial research, by its terms of access",
        build=_INFILLING,
    ),
    "pile": PublicSet(TextLines, "text_infilling", "https://pile.eleuther.ai", "that of each part, as its page says"),
}  # fmt: skip

# Evaluation sets are judged as they are published, and one picture or text may come with two labels: nothing is left out as a duplicate.
_AS_PUBLISHED = {"drop_duplicates": False}
_GLUE, _GLUE_LICENCE = "https://gluebenchmark.com/tasks", "that of each corpus, as its page says"

_UNC = ("train", "validation=val", "test_a=testA", "test_b=testB")

DOWNSTREAM: dict[str, PublicSet] = {
    **{
        task: PublicSet(
            Glue, task, _GLUE, _GLUE_LICENCE, {"subset": task}, _AS_PUBLISHED, notes=("labels by name; the test files have none",)
        )
        for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
    },
    "gigaword": PublicSet(
        ParallelLines, "summary", "https://github.com/harvardnlp/sent-summary", "that of LDC's Gigaword", build=_AS_PUBLISHED
    ),
    "snli_ve": PublicSet(
        SnliVe, "entailment", "https://github.com/necla-ml/SNLI-VE", "SNLI's, CC BY-SA 4.0; of each picture, by its owner",
        {"splits": ("train", "validation=dev", "test")}, _AS_PUBLISHED,
    ),
    "imagenet": PublicSet(
        ImageNet1k, "class_name", "https://image-net.org/challenges/LSVRC/2012/", "non-commercial research, by its terms of access",
        build=_AS_PUBLISHED | _LARGE, notes=("words of the classes as synset_words.txt has them; two classes are both crane there",),
    ),
    "fashion_mnist": PublicSet(
        FashionMnist, "class_name", "https://github.com/zalandoresearch/fashion-mnist", "MIT", build=_AS_PUBLISHED,
        notes=("validation is the last 5,000 of the makers' train", "words of the classes in lower case"),
    ),
    "coco_karpathy": PublicSet(
        Coco, "short_caption", _COCO, _CC_BY, {"karpathy": "dataset_coco.json", "splits": ("train", "validation=val", "test")},
        _AS_PUBLISHED, notes=("train is Karpathy's train and restval",),
    ),
    "refcoco_unc": PublicSet(
        RefCoco, "referring", _REFER, _CC_BY, {"subset": "refcoco", "splits": _UNC}, _AS_PUBLISHED,
    ),
    "refcoco_plus_unc": PublicSet(
        RefCoco, "referring", _REFER, _CC_BY, {"subset": "refcoco+", "splits": _UNC}, _AS_PUBLISHED,
    ),
    "refcocog_umd": PublicSet(
        RefCoco, "referring", _REFER, _CC_BY, {"subset": "refcocog", "splits": ("train", "validation=val", "test")}, _AS_PUBLISHED,
    ),
    "vqa_v2_splits": PublicSet(
        VqaV2, "answer", "https://visualqa.org/download.html", _CC_BY, {"splits": ("train", "validation=val")}, _AS_PUBLISHED,
        notes=("answers are of the 3,129 most frequent of train, in every split; all answers of people are kept",),
    ),
}  # fmt: skip

# Layouts of files that are no public set of the list: OFA's own release, and people's own data.
LAYOUTS: dict[str, type[Layout]] = {
    "webdataset": WebDataset,
    "table": ColumnTable,
    "text_table": TextTable,
    "text_lines": TextLines,
    "image_folders": ImageFolders,
    "ofa_pairs": OfaVisionLanguage,
    "ofa_texts": OfaText,
    "ofa_images": OfaImages,
    "ofa_detection": OfaDetection,
    "ofa_captions": OfaCaptions,
    "ofa_referring": OfaReferring,
    "ofa_vqa": OfaQuestions,
    "ofa_snli_ve": OfaEntailment,
    "ofa_imagenet": OfaClasses,
    "ofa_gigaword": OfaSummaries,
}
