"""Persons across sources, and the train/val split by person."""
