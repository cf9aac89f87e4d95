"""Names of pictures that several data sets hold.

`Layout.picture_key` must return the same word for a picture, wherever it comes from: a picture of an evaluation set is found in the others
by its name.
"""

from __future__ import annotations


def coco_picture(number: str) -> str:
    """Returns the name of COCO's picture `number`, which VQAv2 and RefCOCO show too."""
    return f"coco/{number}"


def visual_genome_picture(number: str) -> str:
    """Returns the name of Visual Genome's picture `number`, which GQA shows too."""
    return f"visual_genome/{number}"


def flickr30k_picture(number: str) -> str:
    """Returns the name of Flickr30k's picture `number`, which SNLI-VE shows."""
    return f"flickr30k/{number}"
