"""The OFA model in Flax NNX: pure functions of (parameters, statistics, inputs, key)."""
