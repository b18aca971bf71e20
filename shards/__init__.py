"""Lowest floor: errors, timing, weights, the sample, the corpus tables, the shard writer and reader."""
