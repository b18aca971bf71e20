"""Face embeddings: alignment, models, and similarity of one person against others."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import MEDIA

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.models.face_embedding import (
    DlibEncoder,
    FaceEncoder,
    SFaceEncoder,
    align_face,
    clip_face_embedding,
)
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import is_cached, resolve

SPEAKING = ["closeup_english.mp4", "address_english_mpeg4.mp4", "russian_speech_hevc.mp4"]


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def pictures(path: Path, side: int = 128) -> np.ndarray:
    """uint8 [F, side, side, 3] on the 16 fps grid."""
    scale = f"fps={VIDEO_FPS}:start_time=0,scale={side}:{side}:flags=area"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3)


@given(
    st.floats(-60, 60),
    st.floats(0.6, 2.5),
    st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    st.sampled_from([(400, 300), (300, 500)]),
)
@settings(max_examples=15, deadline=None)
def test_alignment_undoes_rotation_scale_and_shift(
    angle: float, scale: float, move: tuple[float, float], size: tuple[int, int]
) -> None:
    template, side = SFaceEncoder.TEMPLATE, SFaceEncoder.SIDE
    width, height = size
    matrix = cv2.getRotationMatrix2D((56.0, 56.0), angle, scale)
    matrix[:, 2] += np.array(size) / 2 - 56 + move
    there = (np.hstack([template, np.ones((4, 1))]) @ matrix.T) / size
    face = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8), (0, 0), 5
    )
    picture = cv2.warpAffine(face, matrix, (width, height), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.full((side, side), 255, np.uint8), matrix, (width, height))
    back = align_face(picture, there, template, side)
    sure = align_face(np.dstack([inside] * 3), there, template, side)[:, :, 0] == 255
    assert np.abs(back.astype(int) - face)[sure].mean() < 3


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """A folder with a network of SFace's shape that returns 128 of the mean colours of 8 x 8 patches."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "chosen"], ["fc1"]),
    ]
    chosen = numpy_helper.from_array(np.eye(192, 128, dtype=np.float32), "chosen")
    shape = helper.make_tensor_value_info(
        "data", TensorProto.FLOAT, [1, 3, SFaceEncoder.SIDE, SFaceEncoder.SIDE]
    )
    graph = helper.make_graph(
        nodes,
        "patches",
        [shape],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 128])],
        [chosen],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        str(tmp_path / SFaceEncoder.FILE),
    )
    return tmp_path


def test_sface_input_is_aligned_in_its_colour_order(patches: Path) -> None:
    picture = cv2.GaussianBlur(
        np.random.default_rng(3).integers(0, 255, (300, 400, 3)).astype(np.uint8), (0, 0), 9
    )
    points = (SFaceEncoder.TEMPLATE * 1.5 + (100, 60)) / (400, 300)
    vector = SFaceEncoder(str(patches)).encode(picture, points)
    chip = align_face(picture, points, SFaceEncoder.TEMPLATE, SFaceEncoder.SIDE).astype(np.float64)
    means = (
        chip.reshape(8, 14, 8, 14, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()[:128]
    )  # red, green, blue
    assert vector.shape == (128,)
    assert vector == pytest.approx(means / np.linalg.norm(means), abs=1e-3)


def test_clip_embedding_is_mean_over_main_face_only(patches: Path) -> None:
    from uniavgen.ingest.config import FaceConfig
    from uniavgen.ingest.models.face_reader import FaceCollector, FaceReader

    astronaut = cv2.cvtColor(cv2.imread(str(resolve("astronaut") / "astronaut.png")), cv2.COLOR_BGR2RGB)[
        :320, 60:380
    ]
    picture = np.concatenate(
        [astronaut, cv2.resize(cv2.convertScaleAbs(astronaut[:, ::-1], alpha=0.5), (320, 320))], axis=1
    )
    reader = FaceReader(FaceConfig())
    try:
        meter = FaceCollector(reader, FaceConfig(), lambda at: True, SFaceEncoder(str(patches)))
        for frame in range(17):
            meter.add_frame(frame, np.roll(picture, frame % 3, axis=1))
        seen = meter.result()
    finally:
        reader.close()
    assert seen.vectors is not None
    assert seen.vectors.frame.tolist() == [0, 0, 8, 8, 16, 16]
    for track in (0, 1):
        main = seen.faces.rows(seen.faces.track == track)
        own = [
            vector
            for frame, box, vector in zip(
                seen.vectors.frame, seen.vectors.box, seen.vectors.vector, strict=True
            )
            if any((main.frame == frame) & (main.box == box).all(axis=1))
        ]
        assert len(own) == 3
        mean = np.mean(own, axis=0)
        assert clip_face_embedding(seen.vectors, main) == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert clip_face_embedding(seen.vectors, seen.faces.rows(seen.faces.frame == 3)) is None
    assert clip_face_embedding(None, seen.faces) is None


def test_folder_without_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"weights sface lack {SFaceEncoder.FILE}"):
        SFaceEncoder(str(tmp_path))
    with pytest.raises(UserError, match=f"weights dlib-face lack {DlibEncoder.FILE}"):
        DlibEncoder(str(tmp_path))


def people_and_vectors(encoder: FaceEncoder) -> np.ndarray:
    """Embeddings of one portrait in other light, mirrored, small and compressed, then of other people."""
    from uniavgen.ingest.config import FaceConfig
    from uniavgen.ingest.models.face_reader import FaceReader

    astronaut = cv2.cvtColor(cv2.imread(str(resolve("astronaut") / "astronaut.png")), cv2.COLOR_BGR2RGB)
    small = cv2.resize(astronaut, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    pressed = cv2.imdecode(
        cv2.imencode(".jpg", astronaut, [cv2.IMWRITE_JPEG_QUALITY, 12])[1], cv2.IMREAD_COLOR
    )
    people = [
        astronaut,
        cv2.convertScaleAbs(astronaut, alpha=0.6, beta=10),
        astronaut[:, ::-1],
        small,
        pressed,
    ]
    people += [pictures(MEDIA / name, 512)[20] for name in SPEAKING] if MEDIA.is_dir() else []
    reader = FaceReader(FaceConfig())
    try:
        return np.stack(
            [
                encoder.encode(np.ascontiguousarray(p), reader.read(np.ascontiguousarray(p))[0].points)
                for p in people
            ]
        )
    finally:
        reader.close()


def test_dlib_embeddings_separate_persons_at_default_thresholds() -> None:
    alike = (lambda v: v @ v.T)(people_and_vectors(DlibEncoder()))
    assert alike[:5, :5].min() >= 0.95  # curation's `same_face`
    assert (alike[5:] - np.eye(len(alike))[5:]).max(initial=-1) < 0.915  # its `near_face`


@pytest.mark.skipif(
    not is_cached("sface"),
    reason="SFace's weights are not in the cache (uniavgen doctor says how to get them)",
)
def test_sface_embeddings_separate_persons() -> None:
    alike = (lambda v: v @ v.T)(people_and_vectors(SFaceEncoder()))
    assert alike[:5, :5].min() >= 0.5
    assert (alike[5:] - np.eye(len(alike))[5:]).max(initial=-1) < 0.363
