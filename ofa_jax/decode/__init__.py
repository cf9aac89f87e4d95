"""Decoding on device with key and value caches."""
