"""Sweeps for `launch/eval.py --sweep`: which checkpoints, decoded in which ways, on which sets."""
