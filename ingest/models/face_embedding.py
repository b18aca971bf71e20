"""Face embeddings (unit vectors [128]) by dlib's ResNet (default) or OpenCV's SFace (arXiv 2205.12010).

Cosine similarities of dlib's embeddings are close together: on ten real videos at least 0.94 for one person
and at most 0.91 for two; dlib's own limit, a distance of 0.6 before normalisation, is a cosine of about
0.915. For SFace one person has 0.363 and more (OpenCV's limit on LFW). Embeddings of the two models are never
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from uniavgen.ingest.config import FaceConfig
from uniavgen.ingest.records import FaceEmbeddings, FaceTable
from uniavgen.shards.weights import resolve

DIMENSIONS = 128
FACES_PER_FRAME = 2
"""Faces of a frame, largest first, that get an embedding. Heuristic."""


class FaceEncoder(Protocol):
    """A face embedding model.

    `every`: it is run on every n-th frame of the 16 fps grid, according to its cost.
    """

    every: int

    def encode(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Unit vector float32 [128] of the face with four points [4, 2] (in fractions) in a frame uint8 RGB
        [H, W, 3].
        """


class DlibEncoder:
    """dlib's `dlib_face_recognition_resnet_model_v1` (CC0) from `folder`, or from the weight cache if "".

    Every 32nd frame is used: 1 to 5 of a clip. Raises UserError without weights, or with others.
    """

    every = 32
    FILE: ClassVar[str] = "dlib_face_recognition_resnet_model_v1.dat"
    SIDE: ClassVar[int] = 150
    TEMPLATE: ClassVar[np.ndarray] = np.array([[47.7, 47.4], [100.3, 47.4], [74.0, 76.6], [74.0, 105.0]])
    """Right eye, left eye, nose tip and mouth centre of dlib's mean face, with its margin of 25 %."""

    def __init__(self, folder: str = "") -> None:
        from uniavgen.ingest.models.dlib_network import DlibNetwork

        self._network = DlibNetwork(resolve("dlib-face", folder or None) / self.FILE)

    def encode(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """See `FaceEncoder.encode`."""
        return unit_length(self._network.embed(align_face(frame, points, self.TEMPLATE, self.SIDE)[None])[0])


class SFaceEncoder:
    """SFace from `folder`, or from the weight cache or its official source if "".

    Raises UserError without weights.
    """

    every = 8
    FILE: ClassVar[str] = "face_recognition_sface_2021dec.onnx"
    SIDE: ClassVar[int] = 112
    TEMPLATE: ClassVar[np.ndarray] = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]]
    )
    """Right eye, left eye, nose tip and mouth centre (the mean of its corners) in ArcFace's template, which
    SFace uses."""

    def __init__(self, folder: str = "") -> None:
        import cv2

        self._model = cv2.FaceRecognizerSF.create(str(resolve("sface", folder or None) / self.FILE), "")

    def encode(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """See `FaceEncoder.encode`."""
        face = align_face(frame, points, self.TEMPLATE, self.SIDE)
        return unit_length(self._model.feature(np.ascontiguousarray(face[:, :, ::-1])).ravel())


def require_encoder(config: FaceConfig) -> None:
    """Fetch the weights of the configured encoder. Raises UserError if that fails."""
    if config.vectors != "none":
        resolve({"dlib": "dlib-face", "sface": "sface"}[config.vectors], config.vectors_folder or None)


def face_encoder(config: FaceConfig) -> FaceEncoder | None:
    """The configured encoder, or None."""
    if config.vectors == "none":
        return None
    return (
        DlibEncoder(config.vectors_folder)
        if config.vectors == "dlib"
        else SFaceEncoder(config.vectors_folder)
    )


def align_face(frame: np.ndarray, points: np.ndarray, template: np.ndarray, side: int) -> np.ndarray:
    """The face rotated, scaled and shifted (least squares) to `template` [4, 2]: uint8 [side, side, 3]; black
    outside.
    """
    import cv2

    height, width = frame.shape[:2]
    source = (np.asarray(points, np.float64) * (width, height)) @ (1, 1j)  # points as complex numbers
    target = template @ (1, 1j)
    centred = source - source.mean()
    scale = np.vdot(centred, target - target.mean()) / max(np.vdot(centred, centred).real, 1e-9)
    shift = target.mean() - scale * source.mean()
    matrix = np.array([[scale.real, -scale.imag, shift.real], [scale.imag, scale.real, shift.imag]])
    face: np.ndarray = cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return face


class FaceEmbeddingCollector:
    """Collects the embeddings of the largest faces, frame by frame of the 16 fps grid."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self._encoder = encoder
        self._rows: list[tuple[int, tuple[float, ...], np.ndarray]] = []

    def add_frame(
        self, index: int, frame: np.ndarray, faces: Sequence[tuple[tuple[float, ...], np.ndarray]]
    ) -> None:
        """Add the faces of frame number `index`, each as its box and four points."""
        if index % self._encoder.every == 0:
            for box, points in sorted(faces, key=lambda face: face[0][1] - face[0][3])[:FACES_PER_FRAME]:
                self._rows.append((index, box, self._encoder.encode(frame, points)))

    def result(self) -> FaceEmbeddings:
        return FaceEmbeddings(
            frame=np.array([index for index, _, _ in self._rows], np.int32),
            box=np.array([box for _, box, _ in self._rows], np.float32).reshape(-1, 4),
            vector=np.array([vector for _, _, vector in self._rows], np.float32).reshape(-1, DIMENSIONS),
        )


def clip_face_embedding(seen: FaceEmbeddings | None, face: FaceTable) -> list[float] | None:
    """Mean embedding of a clip's main face, whose rows are `face`; None without any."""
    if seen is None:
        return None
    rows = {(int(frame), box.tobytes()) for frame, box in zip(face.frame, face.box, strict=True)}
    taken = [(int(frame), box.tobytes()) in rows for frame, box in zip(seen.frame, seen.box, strict=True)]
    return mean_embedding(seen.vector[np.array(taken, bool)])


def mean_embedding(vectors: np.ndarray) -> list[float] | None:
    """One unit vector for n embeddings [n, d] of the same face; None without any."""
    return unit_length(vectors.mean(axis=0)).tolist() if len(vectors) else None


def unit_length(vector: np.ndarray) -> np.ndarray:
    """The vector float32 [d] scaled to length 1."""
    scaled: np.ndarray = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return scaled
