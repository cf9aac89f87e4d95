"""OFA's pretraining mixture as the row blocks of one global batch of 3,072 rows.

Batch: 2,048 image-text pairs, 256 detection, 256 image infilling and 512 text rows an update (OFA paper, section on pretraining
details). That is the official loader's rule, for every 8 pairs 2 texts, 1 infilling and 1 detection row.

Weights are millions of samples, because the official loader walks one shuffled file: a dataset's share is its share of the samples.
The paper's table of pretraining data gives totals by group: 15.25 captions on 14.78 pictures, 2.92 questions, 3.20 grounded regions,
3.00 detection samples, 36.27 pictures for infilling. It does not split them by dataset; the split below is ours, from the datasets'
public sizes, each said where it stands.

Datasets are folders of `data.dir` with these names. Prepare them as the README says; what an image record holds (captions, regions,
questions, objects, codes) decides which row kinds can be drawn from it.
"""

from __future__ import annotations

from ofa_jax.config.schema import BlockConfig, LengthClass, SourceConfig

# Captions. COCO: 566,747 (the Karpathy training split). VG regions larger than 16,384 px² become captions: what 15.25 leaves, as COCO
# and VG hold 0.21 of the 14.78 million pictures, so that 14.57 come from the web, here by the sets' public sizes 12.42 : 3.32 : 1.00.
_CAPTIONS = {"cc12m": 10.81, "cc3m": 2.89, "sbu": 0.87, "coco_captions": 0.57, "vg_captions": 0.11}
# Questions. VQAv2 train 0.444, GQA's balanced training questions 0.943, VG-QA what 2.92 leaves.
_QUESTIONS = {"vqa_v2": 0.44, "vg_qa": 1.54, "gqa": 0.94}
# Regions. Training expressions of RefCOCO (UNC), RefCOCO+ (UNC), RefCOCOg (UMD); VG's smaller regions what 3.20 leaves.
_REGIONS = {"refcoco": 0.12, "refcoco_plus": 0.12, "refcocog": 0.08, "vg_regions": 2.88}
# Detection. OpenImages train with boxes 1.74, COCO 0.12, VG 0.11; Objects365 what 3.00 leaves.
_OBJECTS = {"openimages": 1.74, "objects365": 1.03, "vg_objects": 0.11, "coco_objects": 0.12}
# Infilling. Public sizes of all of OpenImages, the CLIP subset of YFCC100M and ImageNet-21K; together 38.2, the paper says 36.27.
_PICTURES = {"openimages_all": 9.2, "yfcc15m": 14.8, "imagenet21k": 14.2}


# Shapes for records of different lengths. Nine in ten positions are of use with the lengths that the datasets are known for
# (`ofa_jax/data/typical_lengths.py`); at one shape each, 128 / 64 and 288 / 272, six in ten. `launch/prepare.py classes` prints those
# of the prepared data. First and second numbers: of captioning, VQA or grounding, and of matching or grounded captioning. Up to 64 devices
# share the rows; for more, `configs/ofa_large.py:shards=256` joins classes.
_PAIR_CLASSES = (
    LengthClass(1_024, (12, 32), (20, 2)),  # captions up to some 14 words
    LengthClass(512, (24, 36), (28, 12)),  # questions and regions, captions up to 17
    LengthClass(256, (8, 52), (40, 2)),  # captions up to 30
    LengthClass(256, (52, 120), (52, 44)),
)
_DETECTION_CLASSES = (LengthClass(128, (12,), (56,)), LengthClass(64, (12,), (104,)), LengthClass(64, (12,), (272,)))
_TEXT_CLASSES = (LengthClass(384, (220,), (260,)), LengthClass(128, (272,), (260,)))


def blocks(*, pairs_px: int, num_patches: int) -> tuple[BlockConfig, ...]:
    """Returns the four row blocks. `pairs_px` is the side of the pairs' pictures; of their patches `num_patches` are sampled (0: all).

    Lengths are tokens. Instructions of pairs hold up to 80 words and targets up to 30, as in the released script; longer draws are cut
    at a word. Codes are 256 + EOS; texts are up to 256 tokens, plus the template on the source side; a detection target of 272 holds
    about 45 objects and drops whole objects beyond, where the official code has no limit.
    """
    pairs = _lines("caption", _CAPTIONS) + _lines("question", _QUESTIONS) + _lines("grounding", _REGIONS)
    return (
        BlockConfig(
            name="pairs", stream="pairs", rows=2_048, source_len=128, target_len=64, sources=pairs, image_px=pairs_px,
            pairs_per_image=1, num_patches=num_patches, augment="random_resize_crop", rand_augment=True, classes=_PAIR_CLASSES,
        ),
        BlockConfig(
            name="detection", stream="images", rows=256, source_len=12, target_len=272, sources=_lines("detection", _OBJECTS),
            image_px=256, augment="scale_jitter", classes=_DETECTION_CLASSES,
        ),
        BlockConfig(
            name="infilling", stream="images", rows=256, source_len=12, target_len=260, sources=_lines("image_infilling", _PICTURES),
            image_px=256, augment="resize",
        ),
        BlockConfig(
            name="text", stream="text", rows=512, source_len=272, target_len=260, sources=(SourceConfig("pile", "text_infilling"),),
            classes=_TEXT_CLASSES,
        ),
    )  # fmt: skip


def _lines(row: str, millions: dict[str, float]) -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(dataset, row, weight) for dataset, weight in millions.items())  # type: ignore[arg-type]
