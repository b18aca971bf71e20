"""Copies of one recording: candidate pairs and groups."""
