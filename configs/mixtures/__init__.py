"""Mixtures: the row blocks of a global batch, shared by configs."""
