"""Shards to samples: the seeded sampler, the stream, the budget for unreadable samples."""
