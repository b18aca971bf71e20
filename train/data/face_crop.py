"""Square crops that follow the face: where a crop lies in each frame, cutting it, and pasting it back.

`tracked` moves with the face and keeps one size; `stabilised` also turns and scales with it, so that head
motion leaves the crop and the mouth stays at one place. Only the upper part of the oval is used for position,
roll and scale: the lower part moves with the jaw. Sizes and smoothing are heuristics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack
from uniavgen.train.data.config import CropName

CROP_SIZE = 1.4
"""Height of a crop over the height of the face oval."""
SMOOTHING_FRAMES = 1.0
"""Standard deviation of the Gaussian over time that smooths place, roll and scale: 0.06 s."""
SMALLEST_FACE_PX, LARGEST_FACE_PX = 4.0, 1e5
"""Ovals of other widths or heights are damaged. Comparisons with NaN are false, so these are left out too."""
OVAL_POINTS = 36
"""Points of a measured oval, clockwise from the forehead; other numbers of points give no roll."""
UPPER = np.r_[28:36, 0:9]
"""The oval's points from one temple over the forehead to the other."""
MOUTH_ACROSS, MOUTH_DOWN = (0.28, 0.72), (0.60, 0.92)
"""The mouth's box in fractions of the oval's width and height, measured along the face's own axes."""
FEATHER = 0.12
"""Share of the crop's side over which a pasted crop fades into the portrait."""


@dataclass(frozen=True)
class Placement:
    """Crop pixels -> source pixels, for each frame: `matrix` float64 [F, 2, 3] as of cv2.warpAffine.

    Coordinates are of pixel centres. `size` is the crop's (height, width).
    """

    matrix: np.ndarray
    size: tuple[int, int]

    def rows(self, frames: range | list[int]) -> Placement:
        """The placement of some frames."""
        return Placement(self.matrix[list(frames)], self.size)


def place_crops(
    face: FaceTrack, source: tuple[int, int], target: tuple[int, int], crop: CropName
) -> Placement:
    """Where the crop of each frame of a clip lies. `source` and `target` are (height, width) in pixels.

    Frames without a face, or with an oval of no size, take their place from the nearest frames with one.
    Raises UserError of kind `damaged-sample` if no frame has a face.
    """
    extent = np.ptp(face.oval.astype(np.float64) * (source[1], source[0]), axis=1).min(axis=1)
    seen = np.flatnonzero((face.score > 0) & (extent >= SMALLEST_FACE_PX) & (extent < LARGEST_FACE_PX))
    if not len(seen):
        raise UserError(f"no face in the clip, which crop {crop} needs", kind="damaged-sample")
    oval = face.oval[seen].astype(np.float64) * (source[1], source[0])
    anchor, angle, scale = _upper_face(oval)
    scale = scale / np.median(scale)
    angle = np.unwrap(angle)
    if crop == "tracked":
        angle, scale = np.zeros_like(angle), np.ones_like(scale)
    upright = _turn(oval - anchor[:, None], -angle) / scale[:, None, None]
    low, high = np.median(upright.min(axis=1), axis=0), np.median(upright.max(axis=1), axis=0)
    side = CROP_SIZE * (high[1] - low[1])
    track = np.column_stack([anchor, angle, np.log(scale)])
    every = np.arange(len(face.score))
    track = np.column_stack([np.interp(every, seen, column) for column in track.T])
    track = _smooth(track, SMOOTHING_FRAMES)
    pixel = side / target[0] * np.exp(track[:, 3])
    along = pixel[:, None] * np.column_stack([np.cos(track[:, 2]), np.sin(track[:, 2])])
    centre = track[:, :2] + _turn(((low + high) / 2)[None, None], track[:, 2])[:, 0] * np.exp(track[:, 3:])
    linear = np.stack([along, np.column_stack([-along[:, 1], along[:, 0]])], axis=2)
    middle = np.array([(target[1] - 1) / 2, (target[0] - 1) / 2])
    # oval fractions count from a pixel's edge, matrices from its centre
    offset = centre - 0.5 - linear @ middle
    return Placement(np.concatenate([linear, offset[:, :, None]], axis=2), target)


def _upper_face(oval: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre [F, 2], roll in radians [F] and size [F] of the upper part of ovals [F, P, 2] in pixels."""
    if oval.shape[1] != OVAL_POINTS:
        extent = oval.max(axis=1) - oval.min(axis=1)
        return (oval.max(axis=1) + oval.min(axis=1)) / 2, np.zeros(len(oval)), extent[:, 1]
    upper = oval[:, UPPER]
    # mirrored points of the two sides, and the line between them
    across = (upper[:, len(UPPER) // 2 + 1 :] - upper[:, : len(UPPER) // 2][:, ::-1]).mean(axis=1)
    centre = upper.mean(axis=1)
    size = np.sqrt(((upper - centre[:, None]) ** 2).sum(axis=2).mean(axis=1))
    return centre, np.arctan2(across[:, 1], across[:, 0]), size


def _turn(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Points [F, P, 2] turned about the origin by `angle` [F]."""
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = points[..., 0], points[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _smooth(track: np.ndarray, frames: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    smoothed: np.ndarray = gaussian_filter1d(track, frames, axis=0, mode="nearest")
    return smoothed


def cut_crops(frames: np.ndarray, placement: Placement) -> np.ndarray:
    """Crops uint8 [F, h, w, 3] of frames uint8 [F, H, W, 3]; what is outside the frame repeats its edge."""
    import cv2

    height, width = placement.size
    crops = np.empty((len(frames), height, width, 3), np.uint8)
    for index, (frame, matrix) in enumerate(zip(frames, placement.matrix, strict=True)):
        # shrinking by linear interpolation would alias: average whole pixels first
        shrink = max(1, int(np.linalg.norm(matrix[:, 0])))
        shrink = min(shrink, *frame.shape[:2])
        if shrink > 1:
            rows, columns = frame.shape[0] // shrink, frame.shape[1] // shrink
            whole = frame[: rows * shrink, : columns * shrink]
            frame = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
            matrix = matrix / shrink
            matrix[:, 2] += 0.5 / shrink - 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crops[index] = cv2.warpAffine(
            frame, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
    return crops


def crop_ovals(face: FaceTrack, placement: Placement, source: tuple[int, int]) -> np.ndarray:
    """The ovals of all frames in fractions of the crop: float32 [F, P, 2]."""
    height, width = placement.size
    points = face.oval.astype(np.float64) * (source[1], source[0]) - 0.5 - placement.matrix[:, None, :, 2]
    inverse = np.linalg.inv(placement.matrix[:, :, :2])
    inside: np.ndarray = (np.einsum("fij,fpj->fpi", inverse, points) + 0.5) / (width, height)
    return inside.astype(np.float32)


def mouth_boxes(oval: np.ndarray) -> np.ndarray:
    """Box around the mouth, from ovals [F, P, 2] in any unit: its four corners [F, 4, 2].

    The box is turned with the face. Its place in the oval is a heuristic (see `MOUTH_DOWN`).
    """
    anchor, angle, _ = _upper_face(oval.astype(np.float64))
    upright = _turn(oval - anchor[:, None], -angle)
    low, high = upright.min(axis=1), upright.max(axis=1)
    corners = [(MOUTH_ACROSS[i], MOUTH_DOWN[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
    boxes = np.stack([low + np.array(corner) * (high - low) for corner in corners], axis=1)
    return (_turn(boxes, angle) + anchor[:, None]).astype(np.float32)


def paste_back(portrait: np.ndarray, crops: np.ndarray, placement: Placement) -> np.ndarray:
    """Crops uint8 [F, h, w, 3] in the picture that they were cut from: uint8 [F, H, W, 3].

    `placement` has one row, which holds for all frames, or one a frame. The crop's edge fades into the
    portrait, so that no seam is seen.
    """
    import cv2

    height, width = placement.size
    fade = _fade(height, width)
    matrices = np.broadcast_to(placement.matrix, (len(crops), 2, 3))
    size = (portrait.shape[1], portrait.shape[0])
    pasted = np.empty((len(crops), *portrait.shape), np.uint8)
    for index, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
        warped = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        weight = cv2.warpAffine(fade, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
        mixed = weight * warped + (1 - weight) * portrait
        pasted[index] = np.clip(mixed.round(), 0, 255)
    return pasted


def _fade(height: int, width: int) -> np.ndarray:
    """Weight of each pixel of a crop: 0 at its edge, 1 from `FEATHER` of its side inwards. float32 [h, w]."""

    def ramp(length: int) -> np.ndarray:
        edge = np.minimum(np.arange(length), np.arange(length)[::-1]) / max(1.0, FEATHER * length)
        return np.clip(edge, 0, 1)

    linear: np.ndarray = np.minimum.outer(ramp(height), ramp(width))
    return (linear * linear * (3 - 2 * linear)).astype(np.float32)
