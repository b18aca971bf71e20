"""Decides: policy, captions, splits and the report. Never opens a video."""
