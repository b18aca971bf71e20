"""Metrics, validation losses and warnings of a training run."""
