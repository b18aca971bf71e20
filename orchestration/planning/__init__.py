"""Estimates before a run: memory, time and cost of a training; results and cost of an ingest."""
