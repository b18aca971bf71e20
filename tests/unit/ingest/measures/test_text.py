"""Step `text`: share of a clip's frames under burned-in text."""

import numpy as np
import pytest

from uniavgen.ingest.measures.text import text_ratio
from uniavgen.ingest.records import TextSeen


def test_text_ratio_is_mean_over_analysed_frames() -> None:
    seen = TextSeen(np.array([0.3, np.nan, 0.1, np.nan], np.float32))
    assert text_ratio(seen, 0, 4) == pytest.approx(0.2)
    assert text_ratio(seen, 0, 2) == pytest.approx(0.3)


def test_clip_without_analysed_frame_has_no_text_ratio() -> None:
    assert text_ratio(TextSeen(np.array([0.5, np.nan, np.nan], np.float32)), 1, 3) is None
