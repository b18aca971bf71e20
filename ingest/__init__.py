"""Measures: media, shots, speech, faces, sync and clips. Never judges."""
