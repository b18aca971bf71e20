"""The sample: round trip, damaged members, decoding, face masks."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import (
    FaceTrack,
    Sample,
    SampleMeta,
    Word,
    decode_audio,
    from_members,
    rasterise_oval,
    to_members,
)


def make_sample(frames: int = 3) -> Sample:
    rng = np.random.default_rng(0)
    face = FaceTrack(
        rng.random((frames, 36, 2)).astype(np.float32),
        rng.random((frames, 4)).astype(np.float32),
        np.ones(frames, np.float32),
    )
    meta = SampleMeta(
        clip_id="abc",
        source_id="s",
        source_uri="file.mp4",
        start_s=1.0,
        end_s=3.0,
        speaker="S0",
        language="en",
        transcript="hello",
        words=[Word(text="hello", start_s=0.1, end_s=0.5)],
        caption="a person",
        caption_model="m",
        signals={"snr_db": 20.0, "luma": None},
        versions={"schema": "1"},
    )
    return Sample(meta, b"video", b"audio", face)


def test_members_round_trip() -> None:
    sample = make_sample()
    restored = from_members({"__key__": "abc", **to_members(sample)})
    assert restored.meta == sample.meta
    assert (restored.video, restored.audio) == (b"video", b"audio")
    np.testing.assert_array_equal(restored.face.oval, sample.face.oval)


@pytest.mark.parametrize("lost", ["mp4", "flac", "face.npz", "json"])
def test_missing_member_is_named(lost: str) -> None:
    members = {"__key__": "abc", **to_members(make_sample())}
    del members[lost]
    with pytest.raises(UserError, match=f"abc lacks {lost}"):
        from_members(members)


@pytest.mark.parametrize(
    ("member", "data"), [("json", b"{"), ("json", b'{"clip_id": 1}'), ("face.npz", b"nothing")]
)
def test_damaged_member_is_an_error_in_one_line(member: str, data: bytes) -> None:
    with pytest.raises(UserError, match="abc is damaged") as caught:
        from_members({"__key__": "abc", **to_members(make_sample()), member: data})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", range(5, 1000, 40))
def test_flipped_bit_in_the_face_is_harmless_or_an_error(at: int) -> None:
    members = to_members(make_sample())
    face = bytearray(members["face.npz"])
    face[at % len(face)] ^= 16
    try:
        from_members({"__key__": "abc", **members, "face.npz": bytes(face)})
    except UserError as error:
        assert error.kind == "damaged-sample"  # noqa: PT017 (either outcome is right; another exception is not)


def test_pickled_face_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, oval=np.array([{"a": 1}], dtype=object), box=np.zeros(1), score=np.zeros(1))
    with pytest.raises(UserError, match="damaged"):
        from_members({"__key__": "abc", **to_members(make_sample()), "face.npz": buffer.getvalue()})


def test_another_schema_version_is_an_error_with_a_hint() -> None:
    members = to_members(make_sample())
    members["json"] = members["json"].replace(b'"schema_version":1', b'"schema_version":99')
    with pytest.raises(UserError, match="schema version 99.*uniavgen shard"):
        from_members({"__key__": "abc", **members})


def test_audio_of_another_rate_is_refused() -> None:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(160), 16_000, format="FLAC")
    with pytest.raises(UserError, match="16000 Hz"):
        decode_audio(buffer.getvalue())


@given(
    st.floats(0.2, 0.8),
    st.floats(0.2, 0.8),
    st.floats(0.05, 0.2),
    st.floats(0.05, 0.2),
    st.integers(2, 12),
    st.integers(2, 12),
)
def test_mask_has_the_area_of_its_oval(
    x: float, y: float, rx: float, ry: float, height: int, width: int
) -> None:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    oval = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=-1)[None]
    mask = rasterise_oval(oval, np.ones(1), height, width)
    assert mask.shape == (1, height, width)
    # OpenCV paints the boundary pixels as well: the excess is at most the perimeter in fine pixels
    slack = 2 * np.pi * max(rx * width, ry * height) * 8 / (height * width * 64) + 0.01
    assert mask.mean() == pytest.approx(np.pi * rx * ry, abs=slack)


def test_mask_cells_hold_their_share_of_the_oval() -> None:
    left_half = np.array([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]], np.float32)
    mask = rasterise_oval(left_half, np.ones(1), 1, 4)[0, 0]
    np.testing.assert_allclose(mask, [1, 1, 0, 0], atol=0.13)


def test_frame_without_a_face_has_an_empty_mask() -> None:
    square = np.tile(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32), (2, 1, 1))
    mask = rasterise_oval(square, np.array([1.0, 0.0]), 2, 2)
    assert mask[0].min() == 1
    assert mask[1].max() == 0
