"""The public data sets of OFA's pretraining, by name: how each lies on disk, what is made of it, and under which licence.

One command makes each: `python launch/prepare.py build <name> --source=<its files>`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ofa_jax.prepare.layouts.base import Layout
from ofa_jax.prepare.layouts.webdataset import WebDataset


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """One public data set."""

    layout: type[Layout]
    row: str  # row kind that the mixture draws
    page: str  # of the data set
    licence: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the layout
    build: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `BuildOptions`
    notes: tuple[str, ...] = ()


_URLS = "the pictures' own licences; the list of addresses and captions: see its page"
_LARGE = {"max_side_px": 1_024}  # more than any input needs: 480 px and its crops
_INFILLING = {"square_px": 256}  # tasks.md 2.2: OFA's infilling pictures are stored as squares of 256 px

SETS: dict[str, PublicSet] = {
    "cc3m": PublicSet(WebDataset, "caption", "https://ai.google.com/research/ConceptualCaptions/", _URLS, build=_LARGE),
    "cc12m": PublicSet(WebDataset, "caption", "https://github.com/google-research-datasets/conceptual-12m", _URLS, build=_LARGE),
    "sbu": PublicSet(WebDataset, "caption", "https://www.cs.rice.edu/~vo9/sbucaptions/", _URLS, build=_LARGE),
    "yfcc15m": PublicSet(
        WebDataset, "image_infilling", "https://github.com/openai/CLIP/blob/main/data/yfcc100m.md", "Creative Commons, by picture",
        fields={"captions": False}, build=_INFILLING,
    ),
}  # fmt: skip

LAYOUTS: dict[str, type[Layout]] = {"webdataset": WebDataset}
