"""Duplicate clips: pairs of similar clips, and groups of which one clip is kept."""
