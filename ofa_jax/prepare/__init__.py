"""Offline: raw material to checked ArrayRecord shards with a manifest."""
