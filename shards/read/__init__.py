"""Shards to training samples: sampler, stream, and the error budget for damaged samples."""
