"""The portrait at rest: the photograph cropped, recoloured and reshaped for a look, with a mesh and closed
lips.

`face.py` animates the `Portrait`; `warp` moves a texture with a mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from uniavgen.shards.weights import resolve

if TYPE_CHECKING:
    import numpy as np

# Landmark numbers of MediaPipe's face mesh.
OVAL: tuple[int, ...] = (
    10,
    338,
    297,
    332,
    284,
    251,
    389,
    356,
    454,
    323,
    361,
    288,
    397,
    365,
    379,
    378,
    400,
    377,
    152,
    148,
    176,
    149,
    150,
    136,
)
OVAL += (172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
_LIPS_OUTLINE = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
MESH_POINTS = 468
"""Landmarks of the mesh. The last ten of MediaPipe's 478 are irises, which the mesh does not need."""

MOUTH_DARK = (62.0, 22.0, 20.0)
"""Colour of the back of the mouth, RGB."""

_CROP = (105, 5, 240)
"""Left, top and side in pixels of the square of the photograph that is animated."""


@dataclass(frozen=True)
class Look:
    """A variant of the photograph, so that people look different. Colours are factors on R, G, B."""

    mirror: bool = False
    zoom: float = 1.0
    width: float = 1.0
    jaw: float = 1.0
    hair: tuple[float, float, float] = (1.0, 1.0, 1.0)
    room: tuple[float, float, float] = (1.0, 1.0, 1.0)
    skin: tuple[float, float, float] = (1.0, 1.0, 1.0)
    suit_hue: int = 0


_GREY = (0.42, 0.40, 0.42)
_RED = (0.95, 0.62, 0.45)
_DEEP = (0.90, 0.86, 0.82)
LOOKS: dict[str, Look] = {
    "astronaut": Look(),
    "astronaut_close": Look(zoom=1.2, room=(0.85, 0.95, 0.88)),
    "mirror": Look(mirror=True, width=0.93, jaw=0.90, hair=_RED, room=(0.80, 0.92, 1.05), suit_hue=100),
    "mirror_close": Look(zoom=1.15, width=0.93, jaw=0.90, hair=_RED, room=(0.95, 0.80, 0.85), suit_hue=100),
    "dark": Look(width=1.07, jaw=1.12, hair=_GREY, room=(0.72, 0.77, 0.82), skin=_DEEP, suit_hue=55),
    "dark_close": Look(
        True, 1.2, width=1.07, jaw=1.12, hair=_GREY, room=(0.88, 0.80, 0.66), skin=_DEEP, suit_hue=55
    ),
    "warm": Look(
        mirror=True, width=1.03, jaw=0.97, hair=(0.85, 0.85, 0.95), room=(1.0, 0.86, 0.72), suit_hue=150
    ),
}


@dataclass(frozen=True)
class Portrait:
    """A look at rest: texture with closed lips, teeth and mesh, all in pixels of the output frame."""

    texture: np.ndarray
    mouth_inside: np.ndarray
    mesh: np.ndarray  # [P, 2] where the texture's landmarks and anchors are
    depth: np.ndarray  # [P] distance towards the viewer
    grip: np.ndarray  # [P] 1: moves with the head, 0: stays
    triangles: np.ndarray  # int [T, 3]


@lru_cache(maxsize=8)
def portrait(name: str, size: int) -> Portrait:
    """Crop, recolour and reshape the photograph for a look, and build its mesh."""
    import cv2
    import numpy as np
    from scipy.spatial import Delaunay

    look = LOOKS[name]
    photo, landmarks = _photograph()
    left, top, side = map(float, _CROP)
    face = landmarks[list(OVAL), :2].mean(axis=0)
    side = side / look.zoom
    left, top = face[0] - (face[0] - left) / look.zoom, face[1] - (face[1] - top) / look.zoom
    scale = size / side
    fit = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    picture = cv2.warpAffine(photo, fit, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    mesh = landmarks[:MESH_POINTS, :2] * scale + fit[:, 2]
    depth = -0.7 * landmarks[:MESH_POINTS, 2] * scale  # full depth would pull the room along at the jaw
    picture = _recolour(picture, mesh, look)
    shut, inside = _mouth_textures(picture, mesh)
    points, grip = _with_anchors(mesh, size)
    depth = np.concatenate([depth, np.full(len(points) - len(mesh), depth[list(OVAL)].mean())])
    triangles = Delaunay(points).simplices
    shaped = _reshape(points, grip, look)
    shut, inside = (warp(texture, points, shaped, triangles) for texture in (shut, inside))
    return Portrait(shut, inside, shaped, depth, grip, triangles)


def warp(texture: np.ndarray, mesh: np.ndarray, points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The texture uint8 [S, S, 3] warped from `mesh` to `points` (pixels [P, 2]), triangle by triangle."""
    import cv2
    import numpy as np

    size = texture.shape[0]
    half = size // 2  # maps are smooth: half the resolution is enough, and four times faster
    owner = np.zeros((half, half), np.int32)
    for number, shape in enumerate(np.round(points[triangles] * 8).astype(np.int32)):
        cv2.fillConvexPoly(owner, shape, number, shift=4)
    affine = _affine_maps(points[triangles], mesh[triangles])[owner]
    ys, xs = (np.mgrid[0:half, 0:half] * 2 + 0.5).astype(np.float32)  # centres of 2 x 2 pixels
    source = affine[..., 0] * xs[..., None] + affine[..., 1] * ys[..., None] + affine[..., 2]
    corners = mesh[triangles].astype(np.float32)  # slivers would reach far outside themselves
    source = np.clip(source, corners.min(axis=1)[owner] - 1, corners.max(axis=1)[owner] + 1)
    maps = cv2.resize(source, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.remap(texture, maps[..., 0], maps[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _affine_maps(moved: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Affine maps [T, 2, 3] from moved to rest pixels, of two [T, 3, 2]; flat triangles keep their corner."""
    import numpy as np

    edges = moved[:, 1:] - moved[:, :1]
    area = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
    area = np.where(np.abs(area) < 1e-6, np.inf, area)
    inverse = np.stack([edges[:, 1, 1], -edges[:, 0, 1], -edges[:, 1, 0], edges[:, 0, 0]], axis=1).reshape(
        -1, 2, 2
    )
    inverse = inverse / area[:, None, None]
    linear = np.swapaxes(inverse @ (rest[:, 1:] - rest[:, :1]), 1, 2)
    offset = rest[:, 0] - np.einsum("tij,tj->ti", linear, moved[:, 0])
    return np.concatenate([linear, offset[..., None]], axis=2).astype(np.float32)


def _photograph() -> tuple[np.ndarray, np.ndarray]:
    """The photograph uint8 [512, 512, 3] in RGB and its landmarks float64 [478, 3] in pixels."""
    import cv2
    import mediapipe
    import numpy as np
    from mediapipe.tasks.python import BaseOptions, vision
    from PIL import Image

    photo = np.array(Image.open(resolve("astronaut") / "astronaut.png").convert("RGB"))
    left, top, side = _CROP
    near = cv2.resize(
        photo[top : top + side, left : left + side], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC
    )
    model = BaseOptions(model_asset_path=str(resolve("face-landmarker") / "face_landmarker.task"))
    with vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(base_options=model)
    ) as landmarker:
        faces = landmarker.detect(mediapipe.Image(mediapipe.ImageFormat.SRGB, near)).face_landmarks
    points = np.array([[p.x, p.y, p.z] for p in faces[0]]) * side
    return photo, points + np.array([left, top, 0])


def _recolour(picture: np.ndarray, mesh: np.ndarray, look: Look) -> np.ndarray:
    """Apply the look's colours to hair, skin, room and suit, with soft borders."""
    import cv2
    import numpy as np

    size = len(picture)
    oval = mesh[list(OVAL)]
    centre, height = oval.mean(axis=0), float(np.ptp(oval[:, 1]))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.float32)
    face = np.zeros((size, size), np.uint8)
    cv2.fillPoly(face, [np.round((oval - centre) * 1.02 + centre).astype(np.int32)], 255)
    skin = cv2.GaussianBlur(face, (0, 0), 0.02 * height).astype(np.float32) / 255
    head = np.hypot((x - centre[0]) / (0.92 * height), (y - centre[1] + 0.28 * height) / (1.05 * height))
    coloured = np.clip((hsv[..., 1] - 55) / 50, 0, 1) + np.clip((95 - hsv[..., 2]) / 30, 0, 1)
    hair = (
        np.clip((1 - head) / 0.08, 0, 1)
        * np.clip(coloured, 0, 1)
        * (y < centre[1] + 0.35 * height)
        * (1 - skin)
    )
    neck = (np.abs(x - centre[0]) < 0.40 * height) & (y > centre[1]) & (hsv[..., 1] > 45)
    below = np.clip((y - centre[1] - 0.35 * height) / (0.1 * height), 0, 1)
    body = np.maximum(below * np.clip((hsv[..., 1] - 25) / 30 + (150 - hsv[..., 2]) / 30, 0, 1), neck)
    room = np.clip(1 - skin - hair - body, 0, 1)
    suit = np.clip((hsv[..., 1] - 100) / 40, 0, 1) * (y > centre[1] + 0.6 * height)
    hair, room, suit = (
        cv2.GaussianBlur(m.astype(np.float32), (0, 0), 0.012 * height) for m in (hair, room, suit)
    )
    hsv[..., 0] = (hsv[..., 0] + look.suit_hue) % 180
    hsv[..., 1] *= 0.5 if look.suit_hue else 1.0
    other = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    base = picture + suit[..., None] * (other - picture)
    gain = np.ones((size, size, 3), np.float32)
    for mask, colour in ((hair, look.hair), (room, look.room), (skin, look.skin)):
        gain += mask[..., None] * (np.array(colour, np.float32) - 1)
    return np.clip(base * gain, 0, 255).astype(np.uint8)


def _mouth_textures(picture: np.ndarray, mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face with the mouth filled by lip colour, and the inside of the mouth with the photograph's
    teeth.
    """
    import cv2
    import numpy as np

    height = mesh[152, 1] - mesh[10, 1]
    upper, lower = mesh[list(UPPER_INNER)], mesh[list(LOWER_INNER)]
    lips = np.concatenate([upper, lower[-2:0:-1]])
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(lips).astype(np.int32)], 255)
    teeth = (
        cv2.GaussianBlur(cv2.erode(mask, np.ones((3, 3), np.uint8)), (0, 0), 0.006 * height).astype(
            np.float32
        )
        / 255
    )
    wide = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    outline = np.zeros_like(mask)
    cv2.fillPoly(outline, [np.round(mesh[list(_LIPS_OUTLINE)]).astype(np.int32)], 255)
    red = np.median(picture[(outline > 0) & (wide == 0)], axis=0) * (0.93, 0.82, 0.82)
    filled = cv2.GaussianBlur(
        cv2.bitwise_and(wide, cv2.dilate(outline, np.ones((3, 3), np.uint8))), (0, 0), 0.007 * height
    )
    cover = filled[..., None].astype(np.float32) / 255
    shut = cv2.inpaint(picture, wide, 5, cv2.INPAINT_TELEA) * (1 - 0.8 * cover) + red * 0.8 * cover
    inside = np.array(MOUTH_DARK) * (1 - teeth[..., None]) + 0.86 * picture * teeth[..., None]
    return shut.astype(np.uint8), inside.astype(np.uint8)


def _with_anchors(mesh: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mesh points, then a ring around the hair that moves with the head, and fixed points at the border."""
    import numpy as np

    oval = mesh[list(OVAL)]
    centre, height = oval.mean(axis=0), float(np.ptp(oval[:, 1]))
    angles = np.radians(np.arange(-205, 26, 15.0))  # over the head from ear to ear
    ring = centre + height * np.stack([0.86 * np.cos(angles), 0.92 * np.sin(angles) - 0.12], axis=1)
    along = np.linspace(0, size - 1, 7)
    border = [(a, b) for a in along for b in along if a in (0, size - 1) or b in (0, size - 1)]
    collar = [(centre[0] + dx * height, centre[1] + 0.95 * height) for dx in (-0.75, -0.4, 0.0, 0.4, 0.75)]
    inner = ring[(ring > 4).all(axis=1) & (ring < size - 5).all(axis=1)]
    points = np.concatenate([mesh, inner, border, collar])
    grip = np.zeros(len(points))
    grip[: len(mesh)] = 1
    grip[len(mesh) : len(mesh) + len(inner)] = 0.9
    return points, grip


def _reshape(points: np.ndarray, grip: np.ndarray, look: Look) -> np.ndarray:
    """The mesh with the look's face width and jaw width; points that do not move with the head stay."""
    import numpy as np

    centre = points[list(OVAL)].mean(axis=0)
    height = points[152, 1] - points[10, 1]
    down = np.clip((points[:, 1] - centre[1]) / (0.5 * height), 0, 1)
    factor = look.width * (1 + (look.jaw - 1) * down)
    shaped = points.copy()
    shaped[:, 0] = centre[0] + (points[:, 0] - centre[0]) * (1 + (factor - 1) * (grip > 0))
    return shaped
