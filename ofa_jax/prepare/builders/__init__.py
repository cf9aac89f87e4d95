"""TFDS builders of the quickstart's datasets: they run without TensorFlow and write ArrayRecord shards, one record a chunk."""
