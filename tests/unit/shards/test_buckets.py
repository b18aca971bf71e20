"""Buckets of lengths and aspect ratios."""

import pytest

from uniavgen.shards.buckets import Buckets


def test_bounds_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="bounds must rise"):
        Buckets(seconds=(3.0, 3.0))
