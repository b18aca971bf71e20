"""Tars of samples: atomic writer, safe reader, index, and the manifest of a shards folder."""
