"""The eight tasks of OFA's pretraining and those of its fine-tuning, and which of them a row of the mixture makes."""

from __future__ import annotations

from ofa_jax.tasks import captioning, detection, grounded_captioning, grounding, image_infilling, matching, text_infilling
from ofa_jax.tasks.answering import ANSWERING
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.captioning import CAPTIONING
from ofa_jax.tasks.classification import CLASSIFICATION
from ofa_jax.tasks.detection import DETECTION
from ofa_jax.tasks.entailment import ENTAILMENT
from ofa_jax.tasks.glue import GLUE
from ofa_jax.tasks.grounded_captioning import GROUNDED_CAPTIONING
from ofa_jax.tasks.grounding import GROUNDING
from ofa_jax.tasks.image_generation import IMAGE_GENERATION
from ofa_jax.tasks.image_infilling import IMAGE_INFILLING
from ofa_jax.tasks.matching import MATCHING
from ofa_jax.tasks.short_captioning import SHORT_CAPTIONING
from ofa_jax.tasks.summarisation import SUMMARISATION
from ofa_jax.tasks.text_infilling import TEXT_INFILLING
from ofa_jax.tasks.vqa import VQA

# The order numbers the tasks (`Block.task_ids`): new ones go to the end.
_PRETRAINING = (CAPTIONING, MATCHING, GROUNDING, GROUNDED_CAPTIONING, VQA, DETECTION, IMAGE_INFILLING, TEXT_INFILLING)
_FINE_TUNING = (SHORT_CAPTIONING, ANSWERING, ENTAILMENT, CLASSIFICATION, IMAGE_GENERATION, SUMMARISATION, *GLUE)
TASKS: dict[str, Task] = {task.name: task for task in (*_PRETRAINING, *_FINE_TUNING)}
TASK_NAMES: tuple[str, ...] = tuple(TASKS)

# Row kind (`SourceConfig.row`) -> tasks made of each of its items, in the order of their sequences.
ROWS: dict[str, tuple[Task, ...]] = {
    "caption": (CAPTIONING, MATCHING),
    "question": (VQA, MATCHING),
    "grounding": (GROUNDING, GROUNDED_CAPTIONING),
    "detection": (DETECTION,),
    "image_infilling": (IMAGE_INFILLING,),
    "text_infilling": (TEXT_INFILLING,),
    "short_caption": (SHORT_CAPTIONING,),
    "answer": (ANSWERING,),
    "referring": (GROUNDING,),
    "entailment": (ENTAILMENT,),
    "class_name": (CLASSIFICATION,),
    "painting": (IMAGE_GENERATION,),
    "summary": (SUMMARISATION,),
    **{task.name: (task,) for task in GLUE},
}

# Every constant text that the tasks of pretraining use: what a tokeniser of our own should know beside the data.
INSTRUCTIONS: tuple[str, ...] = (
    captioning.INSTRUCTION,
    matching.CAPTION_OPENING + matching.CAPTION_CLOSING,
    matching.QUESTION_OPENING + matching.QUESTION_MIDDLE + matching.QUESTION_CLOSING,
    matching.YES,
    matching.NO,
    grounding.OPENING + grounding.CLOSING,
    grounded_captioning.INSTRUCTION,
    detection.INSTRUCTION,
    image_infilling.INSTRUCTION,
    text_infilling.OPENING + text_infilling.CLOSING,
)
