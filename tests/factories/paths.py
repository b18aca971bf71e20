"""Paths of the checkout and of the development media beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FACTORIES = ROOT / "tests" / "factories"
MEDIA = ROOT.parent / "shared" / "media"
"""Real videos for development. Tests that use them are skipped if the folder is missing."""
PUBLISHED_WEIGHTS = ROOT.parent / "shared" / "weights"
