"""The settings of OFA's published numbers (sources: the official evaluation scripts; arXiv 2202.03052).

Closed sets are files that come with the data: VQA's 3,129 answers, one a line.
"""

from __future__ import annotations

from ofa_jax.config.decoding import DecodeSetting, SweepConfig

VQA_ANSWERS = "data/pretrain/vqa_v2/answers.txt"


def get_sweep() -> SweepConfig:
    """Returns captioning with beam 5 and 16 tokens, grounding with beam 5, VQA by every answer's probability and by beam search."""
    return SweepConfig(
        decode=(
            DecodeSetting("caption", method="beam", tasks=("captioning",), beam=5, max_len=16, no_repeat_ngram=3),
            DecodeSetting("box", method="beam", tasks=("grounding",), beam=5, no_repeat_ngram=3),
            DecodeSetting("all_answers", method="score", tasks=("vqa",), answers=VQA_ANSWERS, prompt="source"),
            DecodeSetting("beam_answers", method="beam", tasks=("vqa",), answers=VQA_ANSWERS, prompt="source", normalise=False),
        )
    )
