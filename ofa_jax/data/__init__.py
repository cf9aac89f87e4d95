"""From shards to batches: records, order, transforms, quarantine."""
