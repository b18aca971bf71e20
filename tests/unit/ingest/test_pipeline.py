"""The ingest call itself: wrong arguments are refused before anything starts."""

from pathlib import Path

import pytest

from uniavgen.ingest.pipeline import ingest
from uniavgen.shards.errors import UserError


def test_unknown_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no step 'dairize'"):
        ingest(["x"], tmp_path / "corpus", retry=True, step="dairize")
    assert not (tmp_path / "corpus").exists()
