"""Cached latents beside the shards: files, reader, verification."""
