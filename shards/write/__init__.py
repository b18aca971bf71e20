"""Corpus to shards: plan, writer, verification, copies to an object store."""
