"""Forecasts before money is spent: ingest and training."""
