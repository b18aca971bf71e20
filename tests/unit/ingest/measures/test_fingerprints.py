"""Fingerprints: near for a copy of the same content, far for other content, and what each bit means."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import MEDIA

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures import fingerprints
from uniavgen.ingest.measures.fingerprints import (
    VideoHasher,
    change_hash,
    sound_hash,
    sound_span,
    text_hash,
    video_hash,
)
from uniavgen.ingest.models.face_embedding import (
    DlibEncoder,
    FaceEncoder,
    SFaceEncoder,
    align_face,
    clip_face_embedding,
)
from uniavgen.shards.corpus.fingerprints import FREQUENCIES, MIRRORED
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import is_cached, resolve

SPEAKING = ["closeup_english.mp4", "address_english_mpeg4.mp4", "russian_speech_hevc.mp4"]

changes = st.integers(0, 10_000).map(
    lambda seed: np.random.default_rng(seed).normal(0, 20, (32, 32)).astype(np.float32)
)


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def pictures(path: Path, side: int = 128) -> np.ndarray:
    """uint8 [F, side, side, 3] on the 16 fps grid."""
    scale = f"fps={VIDEO_FPS}:start_time=0,scale={side}:{side}:flags=area"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3)


def sound(path: Path, *filters: str) -> np.ndarray:
    chosen = ["-af", ",".join(filters)] if filters else []
    return np.frombuffer(
        ffmpeg("-i", path, "-vn", *chosen, "-ac", 1, "-ar", 16000, "-f", "s16le", "-"), np.int16
    )


def hashes_of(frames: np.ndarray) -> np.ndarray:
    hasher = VideoHasher()
    for frame in frames:
        hasher.add(frame)
    return hasher.hashes()


def share_apart(one: np.ndarray, other: np.ndarray, bits: int) -> float:
    """Mean share of differing bits of hashes at the same place, where both say something."""
    length = min(len(one), len(other))
    a, b = np.asarray(one[:length], np.uint64), np.asarray(other[:length], np.uint64)
    told = (a != 0) & (b != 0)
    assert told.sum() >= 3
    return float(np.bitwise_count((a ^ b)[told]).mean() / bits)


@given(changes)
@settings(max_examples=20, deadline=None)
def test_every_bit_of_a_change_is_the_sign_of_one_frequency(change: np.ndarray) -> None:
    middle = (2 * np.arange(32) + 1) * np.pi / 64
    found = change_hash(change)
    for bit, (v, u) in enumerate(FREQUENCIES):
        amount = (change * np.outer(np.cos(v * middle), np.cos(u * middle))).sum()
        if abs(amount) > 1e-2:
            assert (found >> bit) & 1 == (amount > 0)


@given(changes)
@settings(max_examples=20, deadline=None)
def test_a_mirrored_picture_has_the_mirrored_hash(change: np.ndarray) -> None:
    assert change_hash(change[:, ::-1]) == change_hash(change) ^ MIRRORED
    assert 0 < change_hash(change) < 2**63
    assert change_hash(change + 50) == change_hash(change)
    assert change_hash(-change) == change_hash(change) ^ (2**63 - 1)


def test_a_hash_compares_the_half_second_after_a_moment_with_the_one_before() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3)).astype(np.uint8)
    found = hashes_of(frames)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(np.float64)
    assert len(found) == 11
    for k in range(2, 11):
        at = 4 * k
        assert found[k] == change_hash(
            (grey[at : at + 8].mean(axis=0) - grey[at - 8 : at].mean(axis=0)).astype(np.float32)
        )
    assert found[:2].tolist() == [0, 0]


def test_a_clip_keeps_only_hashes_that_look_at_nothing_but_the_clip() -> None:
    draw = np.random.default_rng(1)
    frames = draw.integers(0, 255, (96, 32, 32, 3)).astype(np.uint8)
    start_s, end_s = 1.3, 4.1
    clip = video_hash(hashes_of(frames), start_s, end_s)
    others = frames.copy()
    others[: round(start_s * VIDEO_FPS)] = 0
    others[int(end_s * VIDEO_FPS) + 1 :] = 0
    assert video_hash(hashes_of(others), start_s, end_s) == clip
    assert len(clip) == 7  # at 2.0, 2.25, ... 3.5 s
    assert video_hash(hashes_of(frames), 0.0, 0.9) == []


def test_a_still_picture_has_no_hash() -> None:
    still = np.full((64, 90, 160, 3), 120, np.uint8) + np.random.default_rng(2).integers(
        0, 3, (64, 90, 160, 3)
    ).astype(np.uint8)
    assert set(hashes_of(still).tolist()) == {0}
    assert hashes_of(still[:10]).tolist() == []


def test_a_text_hash_ignores_case_and_punctuation_and_moves_little_with_one_word() -> None:
    text = "It was the best of times, it was the worst of times; it was the age of wisdom, it was the age of foolishness."
    other = "Four score and seven years ago our fathers brought forth on this continent a new nation conceived in liberty."
    one = text_hash(text)
    assert one is not None
    assert -(2**63) <= one < 2**63
    assert text_hash(text.upper().replace(",", " -")) == one

    def bits(another: str) -> int:
        found = text_hash(another)
        assert found is not None
        return ((one ^ found) & (2**64 - 1)).bit_count()

    assert 0 < bits(text.replace("wisdom", "winter")) <= 16
    assert bits(other) >= 22
    assert (text_hash(""), text_hash(" ... ")) == (None, None)
    assert text_hash("yes") not in (None, text_hash("no"))


@pytest.fixture(scope="module")
def speech() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "sample" / "sample.wav"


def test_a_sound_at_half_the_bitrate_has_nearly_the_same_fingerprint_and_other_speech_has_not(
    speech: Path, tmp_path: Path
) -> None:
    full, half = tmp_path / "full.m4a", tmp_path / "half.m4a"
    ffmpeg("-i", speech, "-b:a", "64k", full)
    ffmpeg("-i", full, "-b:a", "32k", half)
    one, other = sound(full), sound(half)
    near, far = [], []
    for start in (0, 6, 12, 18, 24):
        span = slice(start * 16000, (start + 6) * 16000)
        items, same = sound_hash(one[span]), sound_hash(other[span])
        assert items is not None
        assert same is not None
        assert len(items) == len(same) == 27
        assert min(items) >= 0
        assert max(items) < 2**32
        near.append(share_apart(np.array(items), np.array(same), 32))
        away = sound_hash(one[(start + 3) * 16000 : (start + 9) * 16000]) if start < 20 else None
        far += [share_apart(np.array(items), np.array(away), 32)] if away else []
    assert max(near) <= 0.10
    assert min(far) >= 0.30


def test_silence_and_a_moment_have_no_acoustic_fingerprint_and_a_short_clip_takes_in_what_follows() -> None:
    assert sound_hash(np.zeros(64000, np.int16)) == []
    assert sound_hash(np.full(16000, 9000, np.int16)) == []
    assert sound_span(3.0, 5.0) == (3.0, 7.0)
    assert sound_span(3.0, 9.5) == (3.0, 9.5)


def test_without_chromaprint_in_any_ffmpeg_there_is_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imageio_ffmpeg

    plain = tmp_path / "ffmpeg"
    plain.write_text("#!/bin/sh\necho \"Unknown format 'chromaprint'.\"\n")
    plain.chmod(0o755)
    noise = np.random.default_rng(0).integers(-3000, 3000, 64000).astype(np.int16)
    fingerprints.fingerprinting_ffmpeg.cache_clear()
    try:
        monkeypatch.setattr(fingerprints, "ffmpeg_path", lambda: str(plain))
        assert sound_hash(noise)  # the one of imageio-ffmpeg steps in
        fingerprints.fingerprinting_ffmpeg.cache_clear()
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(plain))
        assert sound_hash(noise) is None
    finally:
        fingerprints.fingerprinting_ffmpeg.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})")
def test_real_videos_are_known_again_at_half_the_bitrate_mirrored_and_small_and_told_apart(
    tmp_path: Path,
) -> None:
    originals = {name: hashes_of(pictures(MEDIA / name)[: 5 * VIDEO_FPS]) for name in SPEAKING}
    small = "scale=trunc(iw/4)*2:-2"
    for name, found in originals.items():
        seconds = {
            "closeup_english.mp4": 6.1,
            "address_english_mpeg4.mp4": 8.0,
            "russian_speech_hevc.mp4": 10.0,
        }[name]
        rate = (MEDIA / name).stat().st_size * 8 / seconds
        cheap = ["-t", 5, "-an", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
        half, flipped = tmp_path / f"half-{name}", tmp_path / f"flip-{name}"
        ffmpeg(
            "-i", MEDIA / name, *cheap, "-b:v", int(rate / 2), half, *cheap, "-vf", f"hflip,{small}", flipped
        )
        assert share_apart(found, hashes_of(pictures(half)), 63) <= 0.08
        mirrored = hashes_of(pictures(flipped))
        assert share_apart(found, np.where(mirrored, mirrored ^ MIRRORED, 0), 63) <= 0.12
        assert share_apart(found, mirrored, 63) >= 0.26
    for name, found in originals.items():
        for other, apart in originals.items():
            if other != name:
                assert min(share_apart(found[shift:], apart, 63) for shift in range(8)) >= 0.26


@given(
    st.floats(-60, 60),
    st.floats(0.6, 2.5),
    st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    st.sampled_from([(400, 300), (300, 500)]),
)
@settings(max_examples=15, deadline=None)
def test_a_turned_scaled_and_moved_face_is_aligned_alike(
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
    """A folder with a network of SFace's shape that tells 128 of the mean colours of 8 x 8 patches, not whose face it is."""
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


def test_a_named_model_is_given_the_aligned_face_in_its_own_order_of_colours(patches: Path) -> None:
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


def test_a_clip_has_the_mean_vector_of_its_main_face_and_of_no_other(patches: Path) -> None:
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


def test_a_folder_without_the_model_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"weights sface lack {SFaceEncoder.FILE}"):
        SFaceEncoder(str(tmp_path))
    with pytest.raises(UserError, match=f"weights dlib-face lack {DlibEncoder.FILE}"):
        DlibEncoder(str(tmp_path))


def people_and_vectors(encoder: FaceEncoder) -> np.ndarray:
    """Vectors of one portrait in other light, mirrored, blurred, small and pressed to a low quality, then of other people."""
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


def test_one_person_in_other_light_size_and_quality_is_one_by_the_default_bounds_and_nobody_else_is() -> None:
    alike = (lambda v: v @ v.T)(people_and_vectors(DlibEncoder()))
    assert alike[:5, :5].min() >= 0.95  # curation's `same_face`
    assert (alike[5:] - np.eye(len(alike))[5:]).max(initial=-1) < 0.915  # its `near_face`


@pytest.mark.skipif(
    not is_cached("sface"),
    reason="SFace's weights are not in the cache (uniavgen doctor says how to get them)",
)
def test_sface_tells_people_apart_too() -> None:
    alike = (lambda v: v @ v.T)(people_and_vectors(SFaceEncoder()))
    assert alike[:5, :5].min() >= 0.5
    assert (alike[5:] - np.eye(len(alike))[5:]).max(initial=-1) < 0.363
