"""Cached latents beside the shards."""
