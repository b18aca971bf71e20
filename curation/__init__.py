"""Decide which clips become samples: policy, duplicates, splits, captions, report, deletion.

Opens no source video.
"""
