"""Evaluation of generated videos: metrics with their networks, sample counts, intervals and controls."""
