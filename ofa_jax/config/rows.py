"""Row kinds and tasks by name: what a config may say of them before any of the tasks' own code is there."""

from __future__ import annotations

from typing import Literal

# What a line of a mixture makes of its records (`tasks/table.ROWS`); those of fine-tuning make one sequence of an item.
Row = Literal[
    "caption", "question", "grounding", "detection", "image_infilling", "text_infilling", "picture",
    "short_caption", "answer", "referring", "entailment", "class_name", "painting", "summary",
    "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2",
]  # fmt: skip
CODE_TASKS = ("image_infilling", "image_generation")
CodeArea = Literal["central", "whole"]
# Rows whose targets are image codes -> what of a picture these stand for: the central half of its sides, or all of it.
CODE_AREAS: dict[str, CodeArea] = {"image_infilling": "central", "painting": "whole"}
CODE_ROWS = tuple(CODE_AREAS)

# Row kinds by the stream that may hold them, with the number of sequences one item of theirs makes (OFA's pretraining loader makes two
# of every image-text pair). `tasks/table.ROWS` says which tasks these are; a test holds the two together.
PICTURE_ROWS = ("short_caption", "answer", "referring", "entailment", "class_name")  # of fine-tuning
PRETRAINING_ROWS = ("caption", "question", "grounding", "detection", "image_infilling", "text_infilling")
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
LABELLED_ROWS = ("summary", *GLUE)
SEQUENCES_PER_ITEM = {
    "pairs": {"caption": 2, "question": 2, "grounding": 2, **dict.fromkeys(PICTURE_ROWS, 1)},
    "images": {"detection": 1, "image_infilling": 1},
    "text": {"text_infilling": 1, "painting": 1, **dict.fromkeys(LABELLED_ROWS, 1)},
}
TASK_NAMES = (
    "captioning", "matching", "grounding", "grounded_captioning", "vqa", "detection", "image_infilling", "text_infilling",
    "short_captioning", "answering", "entailment", "classification", "image_generation", "summarisation", *GLUE,
)  # fmt: skip
TEXT_TASKS = ("text_infilling", "image_generation", "summarisation", *GLUE)  # that read no picture
PROMPTED_ROWS = ("answer", "entailment", *GLUE)  # whose decoder reads the source first (`tasks.base.Prompt`)
# Row kind -> all that its task answers, where that is known without data (`tasks.base.Task.answers`).
_YES_NO = ("no", "yes")
ANSWERS = {
    "entailment": ("yes", "no", "maybe"),
    "cola": _YES_NO,
    "mnli": ("maybe", "yes", "no"),
    "mrpc": _YES_NO,
    "qnli": _YES_NO,
    "qqp": _YES_NO,
    "rte": _YES_NO,
    "sst2": ("negative", "positive"),
}
