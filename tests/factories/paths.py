"""Where tests find the checkout and the development footage beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FACTORIES = ROOT / "tests" / "factories"
MEDIA = ROOT.parent / "shared" / "media"
"""Real videos for development; tests that use them skip where they are absent."""
PUBLISHED_WEIGHTS = ROOT.parent / "shared" / "weights"
