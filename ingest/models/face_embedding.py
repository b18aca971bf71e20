"""Who a face is: a vector per face, by dlib's ResNet (embedded) or by OpenCV's SFace (arXiv 2205.12010).

Goes in: a picture and the four points of a face in it (`ingest.faces.Face.points`). Comes out: a unit vector [128]. Cosines of
dlib's lie close together: on ten real films those of one person are 0.94 and more, those of two 0.91 and less; dlib's own
bound, a distance of 0.6 before normalising, is a cosine of about 0.915. Those of one person by SFace are 0.363 and more
(OpenCV's bound on LFW). Vectors of the two models are never compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from uniavgen.ingest.config import FaceConfig
from uniavgen.ingest.records import FaceTable, FaceVectors
from uniavgen.shards.weights import resolve

DIMENSIONS = 128
MOST = 2
"""A vector is taken of the two largest faces of a picture. Our choice."""


class FaceEncoder(Protocol):
    """A model of faces. `every`: pictures of the 16 fps grid from one that is read to the next, by what reading costs."""

    every: int

    def encode(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Unit vector float32 [128] of the face with these four points [4, 2] (fractions) in a picture uint8 RGB [H, W, 3]."""


class DlibEncoder:
    """dlib's `dlib_face_recognition_resnet_model_v1` (CC0) from `folder`, or from the cache where it is "".

    It costs some 60 ms of a CPU a face, so that it reads every 32nd picture: 1 to 5 of a clip. Raises UserError where the
    weights cannot be had.
    """

    every = 32
    FILE: ClassVar[str] = "dlib_face_recognition_resnet_model_v1.dat"
    SIDE: ClassVar[int] = 150
    TEMPLATE: ClassVar[np.ndarray] = np.array([[47.7, 47.4], [100.3, 47.4], [74.0, 76.6], [74.0, 105.0]])
    """Where dlib's mean face has right eye, left eye, nose tip and the middle of the mouth, with its margin of a quarter."""

    def __init__(self, folder: str = "") -> None:
        import dlib

        self._model = dlib.face_recognition_model_v1(str(resolve("dlib-face", folder or None) / self.FILE))

    def encode(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """As `FaceEncoder` says."""
        return unit_length(
            np.array(
                self._model.compute_face_descriptor(align_face(picture, points, self.TEMPLATE, self.SIDE))
            )
        )


class SFaceEncoder:
    """SFace from `folder`, or from the cache or the official place where it is "". Raises UserError where it cannot be had."""

    every = 8
    FILE: ClassVar[str] = "face_recognition_sface_2021dec.onnx"
    SIDE: ClassVar[int] = 112
    TEMPLATE: ClassVar[np.ndarray] = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]]
    )
    """Where right eye, left eye, nose tip and the middle of the mouth belong (ArcFace's template, which SFace shares; its
    two corners of the mouth give their middle)."""

    def __init__(self, folder: str = "") -> None:
        import cv2

        self._model = cv2.FaceRecognizerSF.create(str(resolve("sface", folder or None) / self.FILE), "")

    def encode(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """As `FaceEncoder` says."""
        face = align_face(picture, points, self.TEMPLATE, self.SIDE)
        return unit_length(self._model.feature(np.ascontiguousarray(face[:, :, ::-1])).ravel())


def require_encoder(config: FaceConfig) -> None:
    """Fetch the weights of the encoder that the configuration names. Raises UserError where they cannot be had."""
    if config.vectors != "none":
        resolve({"dlib": "dlib-face", "sface": "sface"}[config.vectors], config.vectors_folder or None)


def face_encoder(config: FaceConfig) -> FaceEncoder | None:
    """The encoder that the configuration names; None where it names none."""
    if config.vectors == "none":
        return None
    return (
        DlibEncoder(config.vectors_folder)
        if config.vectors == "dlib"
        else SFaceEncoder(config.vectors_folder)
    )


def align_face(picture: np.ndarray, points: np.ndarray, template: np.ndarray, side: int) -> np.ndarray:
    """The face turned, scaled and moved (least squares) to `template` [4, 2]: uint8 [side, side, 3]; black outside."""
    import cv2

    height, width = picture.shape[:2]
    here = (np.asarray(points, np.float64) * (width, height)) @ (1, 1j)
    there = template @ (1, 1j)
    spread = here - here.mean()
    turn = np.vdot(spread, there - there.mean()) / max(np.vdot(spread, spread).real, 1e-9)
    move = there.mean() - turn * here.mean()
    matrix = np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])
    found: np.ndarray = cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return found


class FaceEmbeddingCollector:
    """Fed with pictures of the 16 fps grid and the faces in them; gives `FaceVectors` of the two largest."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self._encoder = encoder
        self._rows: list[tuple[int, tuple[float, ...], np.ndarray]] = []

    def add_frame(
        self, frame: int, picture: np.ndarray, faces: Sequence[tuple[tuple[float, ...], np.ndarray]]
    ) -> None:
        """Faces of one picture, each by its box and its four points."""
        if frame % self._encoder.every == 0:
            for box, points in sorted(faces, key=lambda face: face[0][1] - face[0][3])[:MOST]:
                self._rows.append((frame, box, self._encoder.encode(picture, points)))

    def result(self) -> FaceVectors:
        return FaceVectors(
            frame=np.array([frame for frame, _, _ in self._rows], np.int32),
            box=np.array([box for _, box, _ in self._rows], np.float32).reshape(-1, 4),
            vector=np.array([vector for _, _, vector in self._rows], np.float32).reshape(-1, DIMENSIONS),
        )


def clip_face_embedding(seen: FaceVectors | None, face: FaceTable) -> list[float] | None:
    """The vector of a clip's main face, whose rows `face` holds: the mean of those taken of it; None where none was."""
    if seen is None:
        return None
    own = {(int(frame), box.tobytes()) for frame, box in zip(face.frame, face.box, strict=True)}
    taken = [(int(frame), box.tobytes()) in own for frame, box in zip(seen.frame, seen.box, strict=True)]
    return mean_embedding(seen.vector[np.array(taken, bool)])


def mean_embedding(vectors: np.ndarray) -> list[float] | None:
    """One unit vector for n [n, d] of the same face, for the clips table; None without any."""
    return unit_length(vectors.mean(axis=0)).tolist() if len(vectors) else None


def unit_length(vector: np.ndarray) -> np.ndarray:
    """The vector float32 [d] at length 1."""
    found: np.ndarray = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return found
