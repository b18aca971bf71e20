"""The face in a user's own picture: exactly one is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from uniavgen.ingest.config import FaceConfig
from uniavgen.orchestration.demo.portrait import portrait
from uniavgen.orchestration.own_face import face_of
from uniavgen.shards.errors import UserError
from uniavgen.train.data.config import DataConfig
from uniavgen.train.generation import portrait_of

SIDE = 384


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(portrait("astronaut", SIDE).texture)


def test_only_face_is_found_and_cropped_around_its_middle(photograph: np.ndarray) -> None:
    face = face_of(photograph, FaceConfig(), Path("own.png"))
    assert face.score[0] > 0
    assert face.oval.shape == (1, 36, 2)
    crop, whole = portrait_of(photograph, face, DataConfig(height=128, width=128, crop="stabilised"))
    again = face_of(crop, FaceConfig(), Path("crop.png"))
    low, high = again.oval[0].min(axis=0), again.oval[0].max(axis=0)
    np.testing.assert_allclose((low + high) / 2, [0.5, 0.5], atol=0.05)
    assert high[1] - low[1] == pytest.approx(1 / 1.4, abs=0.06)
    assert whole.image.shape == photograph.shape


@pytest.mark.parametrize("kind", ["no-face", "several-faces"])
def test_no_face_and_two_faces_are_one_line(photograph: np.ndarray, kind: str) -> None:
    pictures = {
        "no-face": np.full((SIDE, SIDE, 3), 120, np.uint8),
        "several-faces": np.concatenate([photograph, photograph], axis=1),
    }
    with pytest.raises(UserError, match=r"own\.png") as caught:
        face_of(pictures[kind], FaceConfig(), Path("own.png"))
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)
