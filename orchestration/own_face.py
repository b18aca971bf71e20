"""The face in a user's own picture, around which it is cropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.ingest.config import FaceConfig
    from uniavgen.ingest.models.face_reader import Face
    from uniavgen.shards.sample import FaceTrack


def find_faces(image: np.ndarray, config: FaceConfig) -> list[Face]:
    """The faces of a picture uint8 [H, W, 3], the largest first."""
    from contextlib import closing

    import numpy as np

    from uniavgen.ingest.models.face_reader import FaceReader

    with closing(FaceReader(config)) as reader:
        return list(reader.read(np.ascontiguousarray(image)))


def largest_face(image: np.ndarray, config: FaceConfig) -> tuple[float, float, float, float] | None:
    """The box of the largest face in fractions of the picture; None, and a line, if there is none."""
    from uniavgen.orchestration.output import console

    faces = find_faces(image, config)
    if not faces:
        console.print_line("no face was found in the image: its centre is used", "yellow")
        return None
    x0, y0, x1, y1 = faces[0].box
    return float(x0), float(y0), float(x1), float(y1)


def face_of(image: np.ndarray, config: FaceConfig, where: Path) -> FaceTrack:
    """The only face of a picture, as the track of one frame.

    Raises UserError of kind `no-face` or `several-faces` that names the file `where`.
    """
    import numpy as np

    from uniavgen.shards.sample import FaceTrack

    faces = find_faces(image, config)
    if not faces:
        raise UserError(
            "no face in the picture",
            where=where,
            hint="give a picture of one person who looks into the camera",
            kind="no-face",
        )
    if len(faces) > 1:
        raise UserError(
            f"{len(faces)} faces in the picture",
            where=where,
            hint="cut out the one that is to speak",
            kind="several-faces",
        )
    face = faces[0]
    return FaceTrack(
        oval=np.asarray(face.oval, np.float32)[None],
        box=np.array([face.box], np.float32),
        score=np.array([face.score], np.float32),
    )
