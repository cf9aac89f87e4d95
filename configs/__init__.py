"""Runs: every file defines `get_config(arg: str) -> RunConfig`; `mixtures` holds what they train on."""
