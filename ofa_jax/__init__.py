"""OFA (One For All) in JAX: pretraining, evaluation and decoding of one sequence-to-sequence model for vision and language."""

__version__ = "0.1.0"
