"""Who a face is: a vector per face, by OpenCV's SFace (arXiv 2205.12010), where the user has its weights.

Goes in: a picture and the four points of a face in it (`ingest.faces.Face.points`). Comes out: a unit vector [128]; those of
one person have a cosine of 0.363 and more (OpenCV's threshold on LFW). Nothing stands in for the model: without it the column
`face` of the clips table stays empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingest.records import FaceTable, FaceVectors
from shards.weights import resolve

MODEL_FILE = "face_recognition_sface_2021dec.onnx"
DIMENSIONS = 128
EVERY, MOST = 8, 2
"""A vector is taken on every 8th picture, of the two largest faces: 2 to 20 of each clip's main face. Our choice."""

SIDE = 112
"""Side of the aligned face in pixels, as SFace was trained."""

TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]])
"""Where right eye, left eye, nose tip and the middle of the mouth belong in it (ArcFace's template, which SFace shares; its two
corners of the mouth give their middle)."""


class FaceEncoder:
    """SFace from `folder`, or from the cache or the official place where it is "". Raises UserError where it cannot be had."""

    def __init__(self, folder: str = "") -> None:
        import cv2

        self._model = cv2.FaceRecognizerSF.create(str(resolve("sface", folder or None) / MODEL_FILE), "")

    def encode(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Unit vector float32 [128] of the face with these four points [4, 2] (fractions) in a picture uint8 RGB [H, W, 3]."""
        vector = self._model.feature(np.ascontiguousarray(aligned(picture, points)[:, :, ::-1])).ravel()
        return unit(vector)


def aligned(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face turned, scaled and moved (least squares) to `TEMPLATE`: uint8 [112, 112, 3]; black beyond the picture."""
    import cv2

    height, width = picture.shape[:2]
    here = (np.asarray(points, np.float64) * (width, height)) @ (1, 1j)
    there = TEMPLATE @ (1, 1j)
    spread = here - here.mean()
    turn = np.vdot(spread, there - there.mean()) / max(np.vdot(spread, spread).real, 1e-9)
    move = there.mean() - turn * here.mean()
    matrix = np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])
    found: np.ndarray = cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return found


class VectorMeter:
    """Fed with pictures of the 16 fps grid and the faces in them; gives `FaceVectors` of the two largest, twice a second."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self._encoder = encoder
        self._rows: list[tuple[int, tuple[float, ...], np.ndarray]] = []

    def look(self, frame: int, picture: np.ndarray, faces: Sequence[tuple[tuple[float, ...], np.ndarray]]) -> None:
        """Faces of one picture, each by its box and its four points."""
        if frame % EVERY == 0:
            for box, points in sorted(faces, key=lambda face: face[0][1] - face[0][3])[:MOST]:
                self._rows.append((frame, box, self._encoder.encode(picture, points)))

    def found(self) -> FaceVectors:
        return FaceVectors(
            frame=np.array([frame for frame, _, _ in self._rows], np.int32),
            box=np.array([box for _, box, _ in self._rows], np.float32).reshape(-1, 4),
            vector=np.array([vector for _, _, vector in self._rows], np.float32).reshape(-1, DIMENSIONS),
        )


def clip_vector(seen: FaceVectors | None, face: FaceTable) -> list[float] | None:
    """The vector of a clip's main face, whose rows `face` holds: the mean of those taken of it; None where none was."""
    if seen is None:
        return None
    own = {(int(frame), box.tobytes()) for frame, box in zip(face.frame, face.box, strict=True)}
    taken = [(int(frame), box.tobytes()) in own for frame, box in zip(seen.frame, seen.box, strict=True)]
    return mean_vector(seen.vector[np.array(taken, bool)])


def mean_vector(vectors: np.ndarray) -> list[float] | None:
    """One unit vector for n [n, d] of the same face, for the clips table; None without any."""
    return unit(vectors.mean(axis=0)).tolist() if len(vectors) else None


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector float32 [d] at length 1."""
    found: np.ndarray = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return found
