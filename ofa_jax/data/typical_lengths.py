"""Token lengths as the public data sets have them, drawn from their published statistics: for choosing shapes before the data is there.

Words: CC3M 10.3 +- 4.5 and CC12M 20.2 +- 16.3 a caption (Changpinyo et al. 2021, arXiv 2102.08981, table 1, which counts tokens as words);
SBU about 12 (Ordonez et al. 2011); COCO 10.5 +- 2.2 (Chen et al. 2015, arXiv 1504.00325); Visual Genome 5 a region, questions 5.7 and
answers 1.8 (Krishna et al. 2016, arXiv 1602.07332); VQAv2 6.2 a question (Antol et al. 2015); GQA 7.9 (Hudson and Manning 2019, a mean
over its balanced questions); RefCOCO 3.5, RefCOCO+ 3.5, RefCOCOg 8.4 (Yu et al. 2016, arXiv 1608.00272). Objects: OpenImages 8.4, COCO
7.3, Objects365 15.8 a picture (Shao et al. 2019), Visual Genome 35. Spreads that are not published are ours. A word is 1.25 tokens of
GPT-2's after OFA's lower-casing.
"""

from __future__ import annotations

import numpy as np

from ofa_jax.config.errors import ConfigError

TOKENS_A_WORD = 1.25
_WORDS = {
    "cc12m": (20.2, 16.3),
    "cc3m": (10.3, 4.5),
    "sbu": (12.0, 6.0),
    "coco_captions": (10.5, 2.2),
    "vg_captions": (5.0, 2.0),
    "vqa_v2": (6.2, 2.0),
    "vg_qa": (5.7, 2.0),
    "gqa": (7.9, 3.0),
    "refcoco": (3.5, 2.0),
    "refcoco_plus": (3.5, 2.0),
    "refcocog": (8.4, 3.5),
    "vg_regions": (5.0, 2.0),
}
_OBJECTS = {"openimages": (8.4, 8.0), "objects365": (15.8, 12.0), "vg_objects": (35.0, 15.0), "coco_objects": (7.3, 7.0)}
# Tokens of the instructions with BOS and EOS, by OFA's templates.
_CAPTION, _MATCHING, _GROUNDING, _GROUNDED, _ANSWER_MATCHING, _DETECTION, _INFILLING, _TEXT = 8, 9, 11, 15, 17, 9, 11, 11
_ANSWER_TOKENS = (1.5, 1.0)
_OBJECT_TOKENS = 5.5  # four bins and a label
_SHORT_TEXTS = 0.1  # of a corpus cut to passages of 512 tokens: last pieces of documents, of any length


def draw_lengths(dataset: str, row: str, count: int, draw: np.random.Generator, *, num_codes: int = 256) -> np.ndarray:
    """Returns token lengths of `count` records, uint16 [count, tasks, 2], as `prepare.lengths` would count them.

    Raises ConfigError for a data set whose statistics are not listed.
    """
    if row == "caption":
        words = _amount(_WORDS, dataset, count, draw)
        spoken, shown = _tokens(np.minimum(words, 30), draw), _tokens(np.minimum(words, 80), draw)
        return _stack([(_CAPTION, spoken + 1), (_MATCHING + shown, 2)], count)
    if row == "question":
        question = _tokens(_amount(_WORDS, dataset, count, draw), draw) + 1  # the question mark
        answer = np.maximum(1, np.rint(_gamma(*_ANSWER_TOKENS, count, draw)))
        return _stack([(question + 2, answer + 1), (_ANSWER_MATCHING + question + answer, 2)], count)
    if row == "grounding":
        text = _tokens(_amount(_WORDS, dataset, count, draw), draw)
        return _stack([(_GROUNDING + text, 5), (_GROUNDED, text + 1)], count)
    if row == "detection":
        objects = _amount(_OBJECTS, dataset, count, draw)
        return _stack([(_DETECTION, np.rint(_OBJECT_TOKENS * objects) + 1)], count)
    if row == "image_infilling":
        return _stack([(_INFILLING, num_codes + 1)], count)
    if row == "text_infilling":
        tokens = np.where(draw.random(count) < _SHORT_TEXTS, draw.integers(16, 257, count), 256)
        noised = np.rint(np.minimum(tokens + 1, 0.8 * tokens + draw.normal(0, 7, count)))
        return _stack([(_TEXT + np.maximum(noised, 1), tokens + 1)], count)
    raise ConfigError(f"row: found {row!r}, expected one with tasks")


def _gamma(mean: float, deviation: float, count: int, draw: np.random.Generator) -> np.ndarray:
    return draw.gamma((mean / deviation) ** 2, deviation**2 / mean, count)


def _amount(table: dict[str, tuple[float, float]], dataset: str, count: int, draw: np.random.Generator) -> np.ndarray:
    if dataset not in table:
        raise ConfigError(f"dataset: found {dataset!r}, expected one of {', '.join(table)}")
    return np.maximum(1, np.rint(_gamma(*table[dataset], count, draw)))


def _tokens(words: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return words + draw.binomial(words.astype(np.int64), TOKENS_A_WORD - 1)


def _stack(tasks: list[tuple[np.ndarray | int, np.ndarray | int]], count: int) -> np.ndarray:
    full = np.array([[np.broadcast_to(side, count) for side in task] for task in tasks])
    return np.moveaxis(full, -1, 0).astype(np.uint16)
