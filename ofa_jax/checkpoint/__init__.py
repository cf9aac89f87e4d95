"""Saving and restoring, the only place that knows Orbax."""
