"""Where the faces are and how their mouths move: MediaPipe's FaceLandmarker, confirmed by its own detector.

Goes in: pictures uint8 [H, W, 3] of the 16 fps grid, one after another. Comes out: a `FaceTable` with a row per face and
frame, tracked by overlap. On a profile or a pattern the landmarks can lock onto something that is no face; a face counts
only where the detector, asked on its own, finds one at the same place.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.config import FaceConfig
from ingest.records import FaceTable
from shards.weights import resolve

OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The 36 mesh points of the face's outline, clockwise from the forehead (MediaPipe's FACEMESH_FACE_OVAL, in order)."""

INNER_LIPS = ((13, 14), (82, 87), (312, 317))
"""Pairs of mesh points of the upper and lower inner lip: middle, and either side of it."""

FOREHEAD, CHIN = 10, 152


@dataclass(frozen=True)
class Face:
    """One face in one picture; the fields are those of `FaceTable`, in fractions of the picture."""

    box: tuple[float, float, float, float]
    oval: np.ndarray
    score: float
    lip_gap: float
    yaw: float
    sharpness: float


class FaceReader:
    """FaceLandmarker and the face detector out of the same file. Close it: its native threads outlive garbage collection."""

    def __init__(self, config: FaceConfig) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        self.config = config
        bundle = resolve("face-landmarker", config.landmarker_folder or None) / "face_landmarker.task"
        self._landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=str(bundle)),
                num_faces=config.max_faces,
                min_face_detection_confidence=config.detection_confidence,
                min_face_presence_confidence=config.detection_confidence,
                output_facial_transformation_matrixes=True,
            )
        )
        with zipfile.ZipFile(bundle) as parts:
            detector = parts.read("face_detector.tflite")
        self._detector = vision.FaceDetector.create_from_options(
            vision.FaceDetectorOptions(
                base_options=BaseOptions(model_asset_buffer=detector),
                min_detection_confidence=config.detection_confidence,
            )
        )

    def read(self, picture: np.ndarray) -> list[Face]:
        """Faces of one picture, largest first."""
        found = self._landmarker.detect(_image(picture))
        if not found.face_landmarks:
            return []
        confirmed = self._detections(picture)
        faces = []
        for points, pose in zip(found.face_landmarks, found.facial_transformation_matrixes, strict=True):
            mesh = np.array([(point.x, point.y) for point in points], np.float32)
            face = _face(mesh, np.asarray(pose), confirmed, picture, self.config.agreement_iou)
            if face is not None:
                faces.append(face)
        return sorted(faces, key=lambda face: -(face.box[3] - face.box[1]))

    def count(self, picture: np.ndarray, faces: list[Face]) -> int:
        """Faces of any size: those that `read` gave for the picture, and those that landmarks confirm in one of four
        overlapping tiles, where small faces are large enough to be found."""
        boxes: list[tuple[float, ...]] = [face.box for face in faces]
        height, width = picture.shape[:2]
        tile_h, tile_w = round(height * 0.6), round(width * 0.6)
        for y in (0, height - tile_h):
            for x in (0, width - tile_w):
                tile = picture[y : y + tile_h, x : x + tile_w]
                place = np.array([x / width, y / height] * 2)
                scale = np.array([tile_w / width, tile_h / height] * 2)
                sure = self.config.tile_confidence
                hits = [place + scale * box for box, score in self._detections(tile) if score >= sure]
                if all(any(_same_face(tuple(hit), known) for known in boxes) for hit in hits):
                    continue  # nothing new: spare the landmarks
                found = [tuple((place + scale * face.box).tolist()) for face in self.read(tile) if face.score >= sure]
                boxes += [box for box in found if not any(_same_face(box, known) for known in boxes)]
        return len(boxes)

    def close(self) -> None:
        self._landmarker.close()
        self._detector.close()

    def _detections(self, picture: np.ndarray) -> list[tuple[tuple[float, float, float, float], float]]:
        height, width = picture.shape[:2]
        found = []
        for hit in self._detector.detect(_image(picture)).detections:
            box = hit.bounding_box
            corners = (box.origin_x / width, box.origin_y / height,
                       (box.origin_x + box.width) / width, (box.origin_y + box.height) / height)  # fmt: skip
            found.append((corners, float(hit.categories[0].score)))
        return found


class FaceTracker:
    """Joins faces of neighbouring frames into tracks by overlap, and collects the table."""

    def __init__(self, config: FaceConfig) -> None:
        self.config = config
        self._rows: list[tuple[int, int, Face]] = []
        self._open: dict[int, tuple[int, tuple[float, float, float, float]]] = {}
        self._tracks = 0

    def add(self, frame: int, faces: list[Face]) -> None:
        """Faces of one frame; frames come in order."""
        self._open = {t: seen for t, seen in self._open.items() if frame - seen[0] <= self.config.track_gap + 1}
        pairs = sorted(
            (
                (overlap(face.box, box), index, track)
                for index, face in enumerate(faces)
                for track, (_, box) in self._open.items()
            ),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        assigned: dict[int, int] = {}
        for shared, index, track in pairs:
            if shared >= self.config.track_iou and index not in assigned and track not in assigned.values():
                assigned[index] = track
        for index, face in enumerate(faces):
            if index not in assigned:
                assigned[index] = self._tracks
                self._tracks += 1
            self._open[assigned[index]] = (frame, face.box)
            self._rows.append((frame, assigned[index], face))

    def table(self) -> FaceTable:
        faces = [face for _, _, face in self._rows]
        return FaceTable(
            frame=np.array([frame for frame, _, _ in self._rows], np.int32),
            track=np.array([track for _, track, _ in self._rows], np.int32),
            box=np.array([face.box for face in faces], np.float32).reshape(-1, 4),
            oval=np.array([face.oval for face in faces], np.float32).reshape(-1, len(OVAL), 2),
            score=np.array([face.score for face in faces], np.float32),
            lip_gap=np.array([face.lip_gap for face in faces], np.float32),
            yaw=np.array([face.yaw for face in faces], np.float32),
            sharpness=np.array([face.sharpness for face in faces], np.float32),
        )


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _same_face(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """A face at a tile's edge is found in part: two boxes are one face if they share a third of the smaller."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width > 0 and height > 0 and width * height > smaller / 3


def yaw_degrees(pose: np.ndarray) -> float:
    """Turn of the head to the side, from MediaPipe's 4 x 4 pose: 0 looks into the camera."""
    return float(np.degrees(np.arctan2(pose[0, 2], pose[2, 2])))


def _face(
    mesh: np.ndarray, pose: np.ndarray, confirmed: list[tuple[tuple[float, float, float, float], float]],
    picture: np.ndarray, agreement: float,
) -> Face | None:  # fmt: skip
    height, width = picture.shape[:2]
    oval = mesh[list(OVAL)]
    x0, y0 = oval.min(axis=0).tolist()
    x1, y1 = oval.max(axis=0).tolist()
    score = max((s for box, s in confirmed if overlap((x0, y0, x1, y1), box) >= agreement), default=0.0)
    if score == 0.0:
        return None
    pixels = mesh * (width, height)
    face_height = float(np.linalg.norm(pixels[FOREHEAD] - pixels[CHIN]))
    gap = float(np.mean([np.linalg.norm(pixels[up] - pixels[low]) for up, low in INNER_LIPS]))
    return Face(
        (x0, y0, x1, y1), oval, score, gap / max(face_height, 1e-6), yaw_degrees(pose), _sharpness(picture, (x0, y0, x1, y1))
    )


def _sharpness(picture: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Variance of the Laplacian of a face, scaled to 128 pixels of height: so that sizes compare."""
    import cv2

    height, width = picture.shape[:2]
    x0, y0 = max(0, round(box[0] * width)), max(0, round(box[1] * height))
    x1, y1 = min(width, round(box[2] * width)), min(height, round(box[3] * height))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return 0.0
    grey = cv2.cvtColor(picture[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    size = (max(4, round(128 * (x1 - x0) / (y1 - y0))), 128)
    return float(cv2.Laplacian(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), cv2.CV_32F).var())


def _image(picture: np.ndarray) -> Any:
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(picture))
