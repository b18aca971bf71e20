"""The ground: errors, clocks, weights, the sample, the corpus tables, the shard writer and the stream."""
