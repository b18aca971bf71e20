"""Corpus to shards: changes, writer, verification, publication to an object store."""
