"""A small shards folder in the real format, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_samples import make_sample, write_shards


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight usable clips and one that is too short for a window of 5 frames."""
    samples = [make_sample(f"clip{i}", 24 + i, seed=i) for i in range(8)]
    return write_shards(
        tmp_path_factory.mktemp("corpus") / "shards", [*samples, make_sample("short", 4, seed=9)]
    )
