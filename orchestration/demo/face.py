"""Animate the portrait: lips follow phones, with blinks, head motion, and the true face oval of every frame.

A Delaunay mesh over MediaPipe's 478 landmarks is moved, and the photograph is warped with it, triangle by
triangle (`cv2.remap`). The inside of the mouth is painted between the lips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniavgen.orchestration.demo.portrait import (
    LOOKS,
    LOWER_INNER,
    MESH_POINTS,
    MOUTH_DARK,
    OVAL,
    UPPER_INNER,
    Portrait,
    portrait,
    warp,
)
from uniavgen.orchestration.demo.visemes import WIDEST, Phone, mouth_track

if TYPE_CHECKING:
    import numpy as np

# Landmark numbers of MediaPipe's face mesh.
_UPPER_LIP: tuple[int, ...] = (
    61,
    185,
    40,
    39,
    37,
    0,
    267,
    269,
    270,
    409,
    291,
    62,
    183,
    42,
    41,
    38,
    12,
    268,
    271,
    272,
    407,
    292,
)
_UPPER_LIP += (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306)
_LOWER_LIP: tuple[int, ...] = (
    146,
    91,
    181,
    84,
    17,
    314,
    405,
    321,
    375,
    77,
    90,
    180,
    85,
    16,
    315,
    404,
    320,
    307,
)
_LOWER_LIP += (96, 89, 179, 86, 15, 316, 403, 319, 325)
_UPPER_LIDS = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
_LOWER_LIDS = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
_ABOVE_LIDS = ((247, 30, 29, 27, 28, 56, 190), (467, 260, 259, 257, 258, 286, 414))


@dataclass(frozen=True)
class FaceFrame:
    """A frame with its truth.

    `picture`: uint8 [size, size, 3] in RGB. `oval`: face oval float32 [36, 2] in fractions of width and
    height. `opening`: distance between the inner lips as a share of the face height.
    """

    picture: np.ndarray
    oval: np.ndarray
    opening: float


def animate(
    look: str, phones: Sequence[Phone], times: Sequence[float], *, size: int = 384, seed: int = 0
) -> Iterator[FaceFrame]:
    """Frames of a speaking head at `times` (seconds, on the clock of `phones`).

    Blinks and head motion are drawn from `seed`; the lips follow `phones` only.
    """
    import numpy as np

    rest = portrait(look, size)
    instants = np.asarray(times, float)
    opening, rounding = mouth_track(phones, instants)
    blink, motion = _blinks(instants, seed), _head_motion(instants, seed)
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 1.6, (4, size, size, 1)).astype(np.float32)
    for index in range(len(instants)):
        points = _pose(rest, opening[index] * WIDEST, rounding[index], blink[index], motion[index])
        picture = _render(rest, points, motion[index])
        gap = float(points[14, 1] - points[13, 1]) / float(points[152, 1] - points[10, 1])
        oval = (points[list(OVAL)] + 0.5) / size
        if LOOKS[look].mirror:
            picture = picture[:, ::-1]
            oval = np.array([1, 0]) + np.array([-1, 1]) * oval
        noise = np.roll(grain[index % 4], tuple(rng.integers(0, size, 2)), (0, 1))
        frame = np.clip(picture + noise, 0, 255).astype(np.uint8)
        yield FaceFrame(frame, oval.astype(np.float32), max(0.0, gap))


def pattern(times: Sequence[float], *, size: int = 384, seed: int = 0) -> Iterator[np.ndarray]:
    """Moving colour waves uint8 [size, size, 3]: frames with motion and without a face."""
    import numpy as np

    y, x = np.mgrid[0:size, 0:size] / size * 2 * np.pi
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    for t in times:
        waves = [
            np.sin((k + 1) * x + (2 - k) * y + phases[k] + (k + 1) * t) * np.cos(2 * y - t + k)
            for k in range(3)
        ]
        yield (127 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def _pose(rest: Portrait, gap: float, rounding: float, blink: float, motion: np.ndarray) -> np.ndarray:
    """Positions [P, 2] of all mesh points: lips, jaw and lids move in the face, then the head moves."""
    import numpy as np

    points = rest.mesh.copy()
    height = points[152, 1] - points[10, 1]
    mouth = points[[78, 308]].mean(axis=0)
    half = (points[308, 0] - points[78, 0]) / 2
    across = (points[:, 0] - mouth[0]) / half
    profile = np.clip(1 - across**2, 0, 1)  # the gap's shape: widest in the middle, none at the corners
    drop = gap * height
    upper, lower = list(UPPER_INNER), list(LOWER_INNER)
    seam = (0.6 * points[upper] + 0.4 * points[lower])[:, 1]
    shut_up, shut_down = seam - points[upper, 1], seam - points[lower, 1]
    middles = np.interp(across, across[upper], shut_up), np.interp(across, across[lower], shut_down)
    lips_up, lips_down = list(_UPPER_LIP) + upper, list(_LOWER_LIP) + lower[1:-1]
    points[lips_up, 1] += (middles[0] - 0.15 * drop * profile)[lips_up]
    points[lips_down, 1] += (middles[1] + 0.85 * drop * profile)[lips_down]
    skin = np.ones(len(points), bool)
    skin[lips_up + lips_down] = False
    skin[MESH_POINTS:] = False
    below = (rest.mesh[:, 1] - mouth[1]) / (rest.mesh[152, 1] - mouth[1])
    jaw = np.clip(below * 1.6, 0, 1) ** 1.5 * np.exp(-0.5 * (across / 1.9) ** 2)
    points[skin, 1] += ((0.62 * drop + 0.6 * middles[1]) * jaw)[skin]
    near = np.exp(-0.5 * ((rest.mesh - mouth) / (1.25 * half, 0.8 * half)) ** 2).prod(axis=1)
    near[MESH_POINTS:] = 0
    points[:, 0] -= 0.13 * rounding * (rest.mesh[:, 0] - mouth[0]) * near
    for upper_lid, lower_lid, above in zip(_UPPER_LIDS, _LOWER_LIDS, _ABOVE_LIDS, strict=True):
        shut = points[list(lower_lid)] - points[list(upper_lid)]
        points[list(upper_lid)] += 0.96 * blink * shut
        points[list(above)] += 0.45 * blink * shut
    return _move_head(rest, points, motion)


def _move_head(rest: Portrait, points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Turn and shift the head. `motion`: yaw, pitch, roll in radians, and a shift (x, y) in face heights."""
    import numpy as np

    height = rest.mesh[152, 1] - rest.mesh[10, 1]
    neck = rest.mesh[152] + (0.0, 0.15 * height)
    yaw, pitch, roll, shift_x, shift_y = motion
    x, y = (points - neck).T
    z = rest.depth
    x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    y = y * np.cos(pitch) - z * np.sin(pitch)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    moved = np.stack([x, y], axis=1) + neck + np.array([shift_x, shift_y]) * height
    return points + rest.grip[:, None] * (moved - points)


def _render(rest: Portrait, points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The texture warped to `points`, with the inside of the mouth between the lips: uint8 [S, S, 3]."""
    import cv2
    import numpy as np

    picture = warp(rest.texture, rest.mesh, points, rest.triangles)
    lips = points[list(UPPER_INNER) + list(LOWER_INNER)[-2:0:-1]]
    left, top = np.floor(lips.min(axis=0)).astype(int) - 6
    right, bottom = np.ceil(lips.max(axis=0)).astype(int) + 6
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(mask, [np.round((lips - (left, top)) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    between = (points[list(UPPER_INNER)] + points[list(LOWER_INNER)]) / 2 - (left, top)
    seam = np.zeros_like(mask)  # lips that touch still show the line between them
    cv2.polylines(seam, [np.round(between * 16).astype(np.int32)], False, 150, 1, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(np.maximum(mask, seam), (0, 0), 0.8)[..., None].astype(np.float32) / 255
    skull = [2, 61, 291]  # under the nose and beside the mouth: where the teeth hang
    moved = _move_head(rest, rest.mesh, motion)[skull].astype(np.float32)
    follow = cv2.getAffineTransform(rest.mesh[skull].astype(np.float32), moved)
    inside = cv2.warpAffine(rest.mouth_inside, follow, picture.shape[:2])[top:bottom, left:right]
    gap = (points[14, 1] - points[13, 1]) / (points[152, 1] - points[10, 1])
    light = np.clip(gap / 0.03, 0, 1)  # no light falls on teeth behind nearly shut lips
    inside = inside * light + np.array(MOUTH_DARK) * (1 - light)
    window = picture[top:bottom, left:right]
    window[:] = (window * (1 - soft) + inside * soft).astype(np.uint8)
    return picture


def _blinks(times: np.ndarray, seed: int) -> np.ndarray:
    """Eye closure 0..1 [n]: a blink of about 0.2 s every 2 to 5 seconds."""
    import numpy as np

    rng = np.random.default_rng((seed, 1))
    shut = np.zeros(len(times))
    instant = rng.uniform(0.6, 2.5)
    while len(times) and instant < times[-1]:
        shut = np.maximum(shut, np.exp(-(((times - instant) / 0.075) ** 4)))
        instant += rng.uniform(2.0, 5.0)
    return shut


def _head_motion(times: np.ndarray, seed: int) -> np.ndarray:
    """Smooth head motion [n, 5]: yaw, pitch, roll (radians), shift (face heights); sums of sines below 0.7
    Hz.
    """
    import numpy as np

    rng = np.random.default_rng((seed, 2))
    reach = np.array([0.065, 0.035, 0.030, 0.020, 0.012])
    frequency, phase = rng.uniform(0.12, 0.7, (3, 5)), rng.uniform(0, 2 * np.pi, (3, 5))
    return (np.sin(2 * np.pi * frequency * times[:, None, None] + phase).mean(axis=1)) * reach * 1.6
