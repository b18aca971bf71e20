"""Which clip `sample` takes its conditions from."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_shards import sample_named, write_tars

from uniavgen.orchestration.commands.sample import find_sample
from uniavgen.shards.errors import UserError


def test_named_clip_is_found_in_any_split_that_has_samples(tmp_path: Path) -> None:
    write_tars(tmp_path, [[sample_named("one"), sample_named("two")]])
    assert find_sample(str(tmp_path), "two").key == "two"
    with pytest.raises(UserError, match="the val split is empty"):
        find_sample(str(tmp_path), None)
    with pytest.raises(UserError, match="no sample three in train or val"):
        find_sample(str(tmp_path), "three")
    write_tars(tmp_path, [[sample_named("held")]], "val")
    assert find_sample(str(tmp_path), None).key == "held"
    assert find_sample(str(tmp_path), "two").key == "two"
