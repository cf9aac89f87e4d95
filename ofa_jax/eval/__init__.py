"""Evaluation: examples picked deterministically, decoded in batches, scored against honest baselines, written and drawn."""
