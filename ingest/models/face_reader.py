"""Faces and their landmarks by MediaPipe's FaceLandmarker, confirmed by its own detector, tracked by overlap.

On a profile or a pattern the landmarks can lock onto something that is not a face. A face is accepted only
while the detector alone finds one at the same position, with eyes, nose and mouth where the landmarks are.
"""

from __future__ import annotations

import ctypes
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uniavgen.ingest.config import FaceConfig
from uniavgen.ingest.models.face_embedding import FaceEmbeddingCollector, FaceEncoder
from uniavgen.ingest.records import FacesSeen, FaceTable
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288),
    *(397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136),
    *(172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The 36 mesh points of the face oval, clockwise from the forehead (MediaPipe's FACEMESH_FACE_OVAL, in
order)."""

INNER_LIPS = ((13, 14), (82, 87), (312, 317))
"""Pairs of mesh points of upper and lower inner lip: the middle and both sides of it."""

FOREHEAD, CHIN = 10, 152

DETECTOR_POINTS = ((33, 133), (362, 263), (1,), (13, 14))
"""Mesh points of the detector's first four key points: right eye, left eye, nose tip, mouth."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in fractions of the frame."""


@dataclass(frozen=True)
class Detection:
    """A face found by the detector alone: `points` float [4, 2] are eyes, nose and mouth in fractions of the
    frame.
    """

    box: Box
    score: float
    points: np.ndarray


@dataclass(frozen=True)
class Face:
    """One face in one frame; the fields are those of `FaceTable`.

    `score` is 0 until the detector confirms the face.
    """

    box: Box
    oval: np.ndarray
    score: float
    lip_gap: float
    yaw: float
    pitch: float
    roll: float
    sharpness: float
    points: np.ndarray
    """Eyes, nose and mouth, float [4, 2], for comparison with a `Detection`."""


class FaceReader:
    """FaceLandmarker, and the face detector from the same file.

    Close it: its native threads outlive garbage collection.

    Every frame is processed as a single image, because MediaPipe's video mode smooths the lips.
    """

    def __init__(self, config: FaceConfig) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        self.config = config
        bundle = resolve("face-landmarker", config.landmarker_folder or None) / "face_landmarker.task"
        self._landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_buffer=without_blendshapes(bundle.read_bytes())),
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

    def landmarks(self, frame: np.ndarray) -> list[Face]:
        """All faces with landmarks, largest first, with score 0: some may not be faces."""
        faces = [
            face_of_mesh(mesh, pose, frame) for mesh, pose in find_meshes(self._landmarker, _image(frame))
        ]
        return sorted(faces, key=lambda face: -(face.box[3] - face.box[1]))

    def detections(self, frame: np.ndarray) -> list[Detection]:
        """Faces found by the detector alone."""
        height, width = frame.shape[:2]
        detections = []
        for hit in self._detector.detect(_image(frame)).detections:
            box = hit.bounding_box
            corners = (
                box.origin_x / width,
                box.origin_y / height,
                (box.origin_x + box.width) / width,
                (box.origin_y + box.height) / height,
            )
            points = np.array([(point.x, point.y) for point in hit.keypoints[: len(DETECTOR_POINTS)]])
            detections.append(Detection(corners, float(hit.categories[0].score), points))
        return detections

    def read(self, frame: np.ndarray) -> list[Face]:
        """Confirmed faces of one frame, largest first."""
        faces = self.landmarks(frame)
        return self._confirmed(faces, self.detections(frame), frame) if faces else []

    def count(self, frame: np.ndarray, faces: list[Face]) -> int:
        """Number of faces of any size: `faces`, and those that landmarks confirm in one of four overlapping
        tiles, where small faces are large enough to be detected.
        """
        boxes: list[Box] = [face.box for face in faces]
        height, width = frame.shape[:2]
        tile_h, tile_w = round(height * 0.6), round(width * 0.6)
        for y in (0, height - tile_h):
            for x in (0, width - tile_w):
                tile = frame[y : y + tile_h, x : x + tile_w]
                corner = np.array([x / width, y / height] * 2)
                scale = np.array([tile_w / width, tile_h / height] * 2)
                hits = [hit for hit in self.detections(tile) if hit.score >= self.config.tile_confidence]
                if all(
                    any(_same_face(_to_frame(hit.box, corner, scale), known) for known in boxes)
                    for hit in hits
                ):
                    continue  # nothing new: skip the landmarks
                confirmed = [
                    _to_frame(face.box, corner, scale)
                    for face in self._confirmed(self.landmarks(tile), hits, tile)
                ]
                boxes += [box for box in confirmed if not any(_same_face(box, known) for known in boxes)]
        return len(boxes)

    def close(self) -> None:
        self._landmarker.close()
        self._detector.close()

    def _confirmed(self, faces: list[Face], detections: list[Detection], frame: np.ndarray) -> list[Face]:
        aspect = frame.shape[1] / frame.shape[0]
        scored = [
            replace(face, score=confirmed_score(face, detections, aspect, self.config)) for face in faces
        ]
        return [face for face in scored if face.score > 0]


def without_blendshapes(bundle: bytes) -> bytes:
    """FaceLandmarker's bundle without the model of facial expressions, which MediaPipe runs on every face
    even where its result is not asked for. Landmarks are the same.
    """
    lean = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as parts, zipfile.ZipFile(lean, "w") as kept:
        for part in parts.infolist():
            if part.filename != "face_blendshapes.tflite":
                kept.writestr(part, parts.read(part))
    return lean.getvalue()


def find_meshes(landmarker: Any, image: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mesh float32 [478, 2] in fractions of the frame, and pose float32 [4, 4], of each face in an image.

    As `landmarker.detect(image)`, without an object in Python for each point: these take a tenth of its time.
    """
    from mediapipe.tasks.python.vision import face_landmarker

    found = face_landmarker.MpFaceLandmarkerResultC()
    library, address = landmarker._lib, ctypes.byref(found)
    library.MpFaceLandmarkerDetectImage(landmarker._handle, image._image_ptr, None, address)
    try:
        faces = []
        for index in range(found.face_landmarks_count):
            points = found.face_landmarks[index]
            floats = ctypes.cast(points.landmarks, ctypes.POINTER(ctypes.c_float))
            size = ctypes.sizeof(points.landmarks._type_) // ctypes.sizeof(ctypes.c_float)
            # a point begins with x and y
            mesh = np.ctypeslib.as_array(floats, (points.landmarks_count, size))[:, :2].copy()
            faces.append((mesh, found.facial_transformation_matrixes[index].to_numpy()))
    finally:
        library.MpFaceLandmarkerCloseResult(address)
    return faces


def confirmed_score(face: Face, detections: list[Detection], aspect: float, config: FaceConfig) -> float:
    """Score of the best detection that overlaps the face and agrees on eyes, nose and mouth; 0 without any,
    or if the face is turned further than landmarks are reliable. `aspect` is the frame's width over its
    height.
    """
    if head_angle_deg(face) > config.turn_limit_deg:
        return 0.0
    unit_length = np.array([aspect, 1.0])
    size = max(1e-6, face.box[3] - face.box[1], (face.box[2] - face.box[0]) * aspect)
    best = 0.0
    for hit in detections:
        distance = np.linalg.norm((hit.points - face.points) * unit_length, axis=1).mean() / size
        if distance <= config.agreement_distance and iou(face.box, hit.box) >= config.agreement_iou:
            best = max(best, hit.score)
    return best


def head_angle_deg(face: Face) -> float:
    """Angle between the direction of the face and the camera."""
    return float(np.degrees(np.arccos(np.cos(np.radians(face.yaw)) * np.cos(np.radians(face.pitch)))))


@dataclass
class _Track:
    """An open track: where the face was last seen, and the score when the detector was last run."""

    frame: int
    box: Box
    checked: int = -1
    score: float = 0.0


class FaceTracker:
    """Joins faces of neighbouring frames to tracks by overlap, and collects the table.

    The detector is run when a track begins, on every `confirm_every`-th frame of it, and on every frame while
    it denies the face. A denied face gets no row.
    """

    def __init__(self, config: FaceConfig) -> None:
        self.config = config
        self._rows: list[tuple[int, int, Face]] = []
        self._open: dict[int, _Track] = {}
        self._tracks = 0

    def add(
        self, frame: int, faces: list[Face], detect: Callable[[], list[Detection]], aspect: float = 1.0
    ) -> tuple[list[Face], int]:
        """Add the landmarked faces of one frame, in order of frames; return the confirmed ones and the number
        denied.

        `detect` runs the detector on this frame and is called at most once. `aspect` is the frame's width
        over its height.
        """
        self._open = {
            t: seen for t, seen in self._open.items() if frame - seen.frame <= self.config.track_gap + 1
        }
        tracks = self._assign(faces)
        matched = [self._open[number] for number in tracks]
        due = any(track.score == 0 or frame - track.checked >= self.config.confirm_every for track in matched)
        detections = detect() if due else []
        confirmed, denied = [], 0
        for face, number, track in zip(faces, tracks, matched, strict=True):
            track.frame, track.box = frame, face.box
            if due:
                track.checked, track.score = frame, confirmed_score(face, detections, aspect, self.config)
            if track.score > 0 and head_angle_deg(face) <= self.config.turn_limit_deg:
                confirmed.append(replace(face, score=track.score))
                self._rows.append((frame, number, confirmed[-1]))
            else:
                denied += 1
        return confirmed, denied

    def table(self) -> FaceTable:
        """All confirmed faces so far."""
        faces = [face for _, _, face in self._rows]
        numbers = {
            name: np.array([getattr(face, name) for face in faces], np.float32)
            for name in ("score", "lip_gap", "yaw", "pitch", "roll", "sharpness")
        }
        return FaceTable(
            frame=np.array([frame for frame, _, _ in self._rows], np.int32),
            track=np.array([track for _, track, _ in self._rows], np.int32),
            box=np.array([face.box for face in faces], np.float32).reshape(-1, 4),
            oval=np.array([face.oval for face in faces], np.float32).reshape(-1, len(OVAL), 2),
            **numbers,
        )

    def _assign(self, faces: list[Face]) -> list[int]:
        """Track number of each face, best overlaps first; a face without a track opens one."""
        pairs = sorted(
            (-iou(face.box, seen.box), index, track)
            for index, face in enumerate(faces)
            for track, seen in self._open.items()
        )
        assigned: dict[int, int] = {}
        for shared, index, track in pairs:
            if -shared >= self.config.track_iou and index not in assigned and track not in assigned.values():
                assigned[index] = track
        for index, face in enumerate(faces):
            if index not in assigned:
                assigned[index] = self._tracks
                self._open[self._tracks] = _Track(-1, face.box)
                self._tracks += 1
        return [assigned[index] for index in range(len(faces))]


class FaceCollector:
    """Collects the faces of every frame of the 16 fps grid, in order, and with an `encoder` their embeddings.

    `wanted(seconds)` tells where faces are searched for. A frame equal to the one before is not processed
    again.
    """

    def __init__(
        self,
        reader: FaceReader,
        config: FaceConfig,
        wanted: Callable[[float], bool],
        encoder: FaceEncoder | None = None,
    ) -> None:
        self._embeddings = FaceEmbeddingCollector(encoder) if encoder else None
        self._reader, self._config, self._wanted = reader, config, wanted
        self._tracker = FaceTracker(config)
        self._looked: list[bool] = []
        self._count: list[int] = []
        self._denied: list[int] = []
        self._before: tuple[np.ndarray, list[Face]] | None = None

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        looked = self._wanted(index / VIDEO_FPS)
        landmarked = self._landmarks(frame) if looked else []
        aspect = frame.shape[1] / frame.shape[0]
        faces, denied = self._tracker.add(index, landmarked, lambda: self._reader.detections(frame), aspect)
        if self._embeddings:
            self._embeddings.add_frame(index, frame, [(face.box, face.points) for face in faces])
        counting = looked and self._config.tile_every and index % self._config.tile_every == 0
        self._looked.append(looked)
        self._count.append(self._reader.count(frame, faces) if counting else -1)
        self._denied.append(denied)

    def result(self) -> FacesSeen:
        return FacesSeen(
            looked=np.array(self._looked, bool),
            face_count=np.array(self._count, np.int16),
            denied=np.array(self._denied, np.int16),
            faces=self._tracker.table(),
            vectors=self._embeddings.result() if self._embeddings else None,
        )

    def _landmarks(self, frame: np.ndarray) -> list[Face]:
        if self._before is None or not np.array_equal(self._before[0], frame):
            self._before = frame, self._reader.landmarks(frame)
        return self._before[1]


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _same_face(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes share a third of the smaller: a face at the edge of a tile is found only in part."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width > 0 and height > 0 and width * height > smaller / 3


def head_pose(pose: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees from MediaPipe's 4 x 4 transformation; all 0 for an upright frontal
    face.

    Yaw is positive towards the frame's right, pitch upwards, roll when the head leans to the frame's left;
    the rotation is yaw x pitch x roll (x right, y up, z towards the camera).
    """
    rotation = pose[:3, :3] / np.linalg.norm(pose[:3, :3], axis=0)
    yaw = np.arctan2(rotation[0, 2], rotation[2, 2])
    pitch = np.arcsin(np.clip(rotation[1, 2], -1, 1))
    roll = np.arctan2(rotation[1, 0], rotation[1, 1])
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


def _to_frame(box: Box, corner: np.ndarray, scale: np.ndarray) -> Box:
    """A box in a tile as a box in the frame."""
    x0, y0, x1, y1 = (corner + scale * box).tolist()
    return x0, y0, x1, y1


def face_of_mesh(mesh: np.ndarray, pose: np.ndarray, frame: np.ndarray) -> Face:
    """A face with score 0 from its mesh [478, 2] in fractions of the frame."""
    height, width = frame.shape[:2]
    oval = mesh[list(OVAL)]
    x0, y0 = oval.min(axis=0).tolist()
    x1, y1 = oval.max(axis=0).tolist()
    pixels = mesh * (width, height)
    face_height = float(np.linalg.norm(pixels[FOREHEAD] - pixels[CHIN]))
    gap = float(np.mean([np.linalg.norm(pixels[upper] - pixels[lower]) for upper, lower in INNER_LIPS]))
    points = np.array([mesh[list(indices)].mean(axis=0) for indices in DETECTOR_POINTS])
    box = (x0, y0, x1, y1)
    return Face(
        box, oval, 0.0, gap / max(face_height, 1e-6), *head_pose(pose), _sharpness(frame, box), points
    )


def _sharpness(frame: np.ndarray, box: Box) -> float:
    """Variance of the Laplacian of a face scaled to a height of 128 pixels, comparable over face sizes."""
    import cv2

    height, width = frame.shape[:2]
    x0, y0 = max(0, round(box[0] * width)), max(0, round(box[1] * height))
    x1, y1 = min(width, round(box[2] * width)), min(height, round(box[3] * height))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return 0.0
    gray = cv2.cvtColor(frame[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    size = (max(4, round(128 * (x1 - x0) / (y1 - y0))), 128)
    return float(cv2.Laplacian(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), cv2.CV_32F).var())


def _image(frame: np.ndarray) -> Any:
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
