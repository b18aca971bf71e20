"""dlib's network in PyTorch against dlib's own package."""

from __future__ import annotations

from pathlib import Path

import dlib
import numpy as np
import pytest

from uniavgen.ingest.models.dlib_network import DlibNetwork
from uniavgen.ingest.models.face_embedding import DlibEncoder
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import resolve


def faces() -> np.ndarray:
    """Noise, a gradient, one colour and blocks: uint8 [4, 150, 150, 3]."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 150).astype(np.uint8)
    blocks = np.kron(random.integers(0, 256, (10, 10, 3)), np.ones((15, 15, 1))).astype(np.uint8)
    return np.stack(
        [
            random.integers(0, 256, (150, 150, 3), dtype=np.uint8),
            np.stack(
                [np.tile(ramp, (150, 1)), np.tile(ramp[:, None], (1, 150)), np.tile(ramp[::-1], (150, 1))], 2
            ),
            np.full((150, 150, 3), (200, 150, 90), np.uint8),
            blocks,
        ]
    )


def test_embeddings_equal_those_of_dlib() -> None:
    path = resolve("dlib-face") / DlibEncoder.FILE
    model = dlib.face_recognition_model_v1(str(path))
    expected = np.array([model.compute_face_descriptor(face) for face in faces()])
    network = DlibNetwork(path)
    assert np.abs(network.embed(faces()) - expected).max() < 1e-5
    assert np.abs(network.embed(faces()[2:3]) - expected[2:3]).max() < 1e-5
    assert np.abs(expected[0] - expected[3]).max() > 0.01  # it tells the inputs apart


@pytest.mark.parametrize("keep", [0, 100, 20_000, 3_000_000, 22_400_000])
def test_damaged_file_is_one_error(keep: int, tmp_path: Path) -> None:
    damaged = tmp_path / "network.dat"
    damaged.write_bytes((resolve("dlib-face") / DlibEncoder.FILE).read_bytes()[:keep])
    with pytest.raises(UserError, match="not dlib's face recognition network"):
        DlibNetwork(damaged)
