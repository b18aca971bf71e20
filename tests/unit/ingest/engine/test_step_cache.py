"""Step cache: stored results are loaded unchanged, or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.records import (
    ClipSync,
    Diarization,
    FacesSeen,
    FaceTable,
    MeasuredRows,
    Proposal,
    Proposals,
    Span,
    SpokenWord,
    SyncMeasures,
    Transcript,
)

SOURCE = "ab" * 16
seconds = st.floats(0, 1e5, allow_nan=False)
words = st.builds(SpokenWord, st.text(), seconds, seconds, st.floats(0, 1), st.text(max_size=3))


def face_table(rows: int) -> FaceTable:
    random = np.random.default_rng(rows)
    made = {
        "frame": np.arange(rows, dtype=np.int32),
        "track": np.zeros(rows, np.int32),
        "box": random.random((rows, 4)),
        "oval": random.random((rows, 36, 2)).astype(np.float32),
    }
    others = {
        name: random.random(rows).astype(np.float32)
        for name in FaceTable.__dataclass_fields__
        if name not in made
    }
    return FaceTable(**made, **others)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(words, max_size=5),
    st.dictionaries(st.text(max_size=4), st.lists(st.floats(width=32), max_size=3)),
)
def test_stored_result_is_loaded_unchanged(
    tmp_path_factory: pytest.TempPathFactory, spoken: list, voices: dict
) -> None:
    cache = StepCache(tmp_path_factory.mktemp("c"))
    for step, result in (
        ("transcribe", Transcript([], spoken)),
        ("diarize", Diarization([Span(0.0, 1.5, "SPEAKER_00")], voices)),
        ("propose", Proposals([Proposal(1.0, 3.0, "S", spoken)])),
        (
            "sync",
            SyncMeasures(
                [ClipSync(None, {"sync_offset_ms": None}), ClipSync(3, {"sync_offset_ms": -40.0}, [0.5])]
            ),
        ),
        (
            "measure",
            MeasuredRows([{"clip_id": "x", "text_hash": -(2**63), "words": [{"text": "a"}]}], {"shots": []}),
        ),
    ):
        cache.save(SOURCE, step, "k", result)
        # NaN does not equal itself: compare as text
        assert repr(cache.load(SOURCE, step, "k", type(result))) == repr(result)


def test_arrays_keep_type_and_path(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    seen = FacesSeen(
        np.array([True, False]), np.array([1, -1], np.int16), np.zeros(2, np.int16), face_table(3)
    )
    cache.save(SOURCE, "faces", "k", seen)
    found = cache.load(SOURCE, "faces", "k", FacesSeen)
    assert found is not None
    for name, value in vars(found.faces).items():
        np.testing.assert_array_equal(value, vars(seen.faces)[name])
        assert value.dtype == vars(seen.faces)[name].dtype
    assert found.face_count.dtype == np.int16


def test_damaged_file_counts_as_absent(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    seen = FacesSeen(np.ones(40, bool), np.ones(40, np.int16), np.zeros(40, np.int16), face_table(40))
    cache.save(SOURCE, "faces", "k", seen)
    (path,) = cache.folder(SOURCE).iterdir()
    intact = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [intact[: len(intact) * share // 10] for share in range(10)]
    for _ in range(60):
        data = bytearray(intact)
        data[random.integers(len(data))] ^= 0xFF
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        found = cache.load(SOURCE, "faces", "k", FacesSeen)
        # a flipped bit in an unused field (a date) does no harm; then the result must be correct
        assert found is None or np.array_equal(found.faces.oval, seen.faces.oval)
    path.write_bytes(intact)
    assert cache.load(SOURCE, "faces", "k", FacesSeen) is not None


def test_result_of_another_class_is_not_loaded(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    cache.save(SOURCE, "propose", "k", Proposals([Proposal(0.0, 2.0)]))
    assert cache.load(SOURCE, "propose", "k", FacesSeen) is None
    assert cache.load(SOURCE, "propose", "other", Proposals) is None


def test_new_result_replaces_old_one_unless_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StepCache(tmp_path)
    cache.save(SOURCE, "propose", "old", Proposals([]))
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            cache.save(SOURCE, "propose", "new", Proposals([]))
    assert [path.name for path in cache.folder(SOURCE).iterdir()] == ["propose.old.npz"]
    cache.save(SOURCE, "propose", "new", Proposals([]))
    assert [path.name for path in cache.folder(SOURCE).iterdir()] == ["propose.new.npz"]
