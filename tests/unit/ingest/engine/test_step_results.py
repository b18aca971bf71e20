"""Stored results come back equal or not at all; a key names all that an answer depends on, and nothing else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.step_graph import SPECS, STEP_NAMES, STEPS
from uniavgen.ingest.measures.steps import STEP_CLASSES, STEP_OF
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
    rest = {
        name: random.random(rows).astype(np.float32)
        for name in FaceTable.__dataclass_fields__
        if name not in made
    }
    return FaceTable(**made, **rest)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(words, max_size=5),
    st.dictionaries(st.text(max_size=4), st.lists(st.floats(width=32), max_size=3)),
)
def test_whatever_is_stored_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, spoken: list, voices: dict
) -> None:
    results = Results(tmp_path_factory.mktemp("c"))
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
        results.save(SOURCE, step, "k", result)
        # NaN equals nothing: compare as written
        assert repr(results.load(SOURCE, step, "k", type(result))) == repr(result)


def test_arrays_keep_their_types_and_places(tmp_path: Path) -> None:
    results = Results(tmp_path)
    seen = FacesSeen(
        np.array([True, False]), np.array([1, -1], np.int16), np.zeros(2, np.int16), face_table(3)
    )
    results.save(SOURCE, "faces", "k", seen)
    found = results.load(SOURCE, "faces", "k", FacesSeen)
    assert found is not None
    for name, value in vars(found.faces).items():
        np.testing.assert_array_equal(value, vars(seen.faces)[name])
        assert value.dtype == vars(seen.faces)[name].dtype
    assert found.face_count.dtype == np.int16


def test_a_damaged_file_is_as_good_as_none_wherever_it_is_damaged(tmp_path: Path) -> None:
    results = Results(tmp_path)
    seen = FacesSeen(np.ones(40, bool), np.ones(40, np.int16), np.zeros(40, np.int16), face_table(40))
    results.save(SOURCE, "faces", "k", seen)
    (path,) = results.folder(SOURCE).iterdir()
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[: len(whole) * share // 10] for share in range(10)]
    for _ in range(60):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 0xFF
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        found = results.load(SOURCE, "faces", "k", FacesSeen)
        # a flipped bit may lie in what nobody reads (a date); then what is read must be right
        assert found is None or np.array_equal(found.faces.oval, seen.faces.oval)
    path.write_bytes(whole)
    assert results.load(SOURCE, "faces", "k", FacesSeen) is not None


def test_a_result_of_another_shape_is_no_result(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.save(SOURCE, "propose", "k", Proposals([Proposal(0.0, 2.0)]))
    assert results.load(SOURCE, "propose", "k", FacesSeen) is None
    assert results.load(SOURCE, "propose", "other", Proposals) is None


def test_a_step_keeps_its_last_result_only_and_a_full_disk_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path)
    results.save(SOURCE, "propose", "old", Proposals([]))
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            results.save(SOURCE, "propose", "new", Proposals([]))
    assert [path.name for path in results.folder(SOURCE).iterdir()] == ["propose.old.npz"]
    results.save(SOURCE, "propose", "new", Proposals([]))
    assert [path.name for path in results.folder(SOURCE).iterdir()] == ["propose.new.npz"]


def changed_steps(**changes: dict) -> set[str]:
    before, after = IngestConfig().keys(), IngestConfig.model_validate(changes).keys()
    return {name for name in STEP_NAMES if before[name] != after[name]}


def test_a_setting_changes_its_step_and_what_depends_on_it_and_nothing_else() -> None:
    assert changed_steps(sync={"max_shift_ms": 500}) == {"sync", "fingerprint", "measure", "cut"}
    assert changed_steps(cut={"crf": 20}) == {"cut"}
    assert "transcribe" not in changed_steps(shots={"threshold": 0.4})
    assert changed_steps(diarization={"cluster_threshold": 0.5}) >= {
        "diarize",
        "transcribe",
        "faces",
        "propose",
        "sync",
        "cut",
    }
    assert not changed_steps(
        limits={"step_seconds": 9}, stages={"speech": {"workers": 7}}, sources={"allow_http": True}
    )


def test_every_section_that_measures_is_some_step_s() -> None:
    read = {setting.split(".")[0] for step in STEPS for setting in step.settings}
    free = {"sources", "limits", "stages", "device", "scratch_gb", "commit_sources", "commit_seconds"}
    assert set(IngestConfig.model_fields) == read | free


def test_the_graph_and_its_classes_say_the_same() -> None:
    classes = {name: stage for stage, steps in STEP_CLASSES.items() for step in steps for name in step.gives}
    assert set(STEP_OF.values()) == set(classes)
    assert {name: SPECS[name].stage for name in classes} == classes
    order = list(STEP_NAMES)
    assert all(order.index(need) < order.index(step.name) for step in STEPS for need in step.needs)
    assert json.dumps(IngestConfig().keys())
