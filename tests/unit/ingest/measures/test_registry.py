"""The registry agrees with signals table, pools and configuration; step keys are those of 0.3.0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import POOLS, FrameStep
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.measures.measure import clip_row
from uniavgen.ingest.measures.registry import STEPS, step_graph
from uniavgen.ingest.records import (
    AudioMeasures,
    ClipAudio,
    ClipFingerprints,
    ClipSync,
    Diarization,
    FacesSeen,
    FaceTable,
    Fingerprints,
    FrameTable,
    Passage,
    Probe,
    Proposal,
    Proposals,
    Shots,
    SourceRecord,
    Span,
    SpokenWord,
    SyncMeasures,
    TextSeen,
    Transcript,
)
from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.corpus.signals import SIGNALS, signals_of

KEYS_OF_0_3_0 = {
    "fetch": "d1d569f386d60604",
    "probe": "269ed971607a774a",
    "sound": "2c0a2d152c0fd61a",
    "diarize": "298a291c046bd432",
    "transcribe": "c12dfb5c29702724",
    "decode": "6c052b9a074861cf",
    "faces": "8c2d9c8a3f2f09f8",
    "shots": "3879a7011b572a1d",
    "picture": "1ef5ae4e94ee5f32",
    "text": "616e45a29d19260c",
    "hash": "264f5d09e1c52ace",
    "propose": "ba3bbab9d970a99d",
    "listen": "f190b63ca3ddf9ba",
    "sync": "c85718643cb44636",
    "fingerprint": "9e0eb48c1d3f1941",
    "measure": "b7b7dd4138f1981f",
    "cut": "ec389800c8448168",
}
"""Keys of the default configuration in release 0.3.0."""

CHANGED_SINCE_0_3_0 = {
    "probe": "627a15c3109a39a1",  # reads the whole file
    "repair": "a63a87995ee1c9de",
    "transcribe": "558ae74bb641ed52",  # words as they are written, one speaker at a time
    "measure": "88a64f847b3854ac",  # more columns
    "cut": "7bd27071e5034c46",  # after measure; files are kept
}
"""A changed key measures every source of every corpus again: change one only with the version of its step."""


def measured_record(has_audio: bool = True) -> SourceRecord:
    """A source of 4 s with one clip, and results of every step that has signals."""
    rng = np.random.default_rng(0)
    faces = {
        "frame": np.arange(64, dtype=np.int32),
        "track": np.zeros(64, np.int32),
        "box": np.tile(np.array([0.4, 0.2, 0.6, 0.7], np.float32), (64, 1)),
        "oval": np.zeros((64, 36, 2), np.float32),
    }
    numbers = {
        name: rng.random(64).astype(np.float32)
        for name in FaceTable.__dataclass_fields__
        if name not in faces
    }
    words = [SpokenWord("hello", 0.5, 1.0, 0.9, "A"), SpokenWord("world", 1.0, 1.5, 0.8, "A")]
    listened = dict.fromkeys(signals_of("listen"), 1.0) if has_audio else {}
    synced = dict.fromkeys(signals_of("sync"), 1.0) if has_audio else {}
    record = SourceRecord("/videos/a.mp4", "ab" * 16)
    results = [
        Probe(
            4.0,
            640,
            360,
            25.0,
            "h264",
            "aac" if has_audio else "",
            has_audio,
            bit_rate=1e6,
            channel_correlation=0.9,
        ),
        AudioFile("", 64_000 if has_audio else 0),
        Diarization([Span(0.4, 1.6, "A")], {"A": [0.0] * 192}),
        Transcript([Passage(0, 4, "hello world", "en", 0.9, -0.2, 0.1, 1.0)], words),
        FacesSeen(
            np.ones(64, bool), np.ones(64, np.int16), np.zeros(64, np.int16), FaceTable(**faces, **numbers)
        ),
        Shots([Span(0, 4)]),
        FrameTable(np.full(64, 90, np.float32), np.full(64, 1, np.float32)),
        TextSeen(np.zeros(64, np.float32)),
        Proposals([Proposal(0.0, 4.0, "A", words)]),
        AudioMeasures([ClipAudio(listened)]),
        SyncMeasures([ClipSync(0, synced, [0.0])]),
        Fingerprints([ClipFingerprints([1], [2], 3, [0.0])]),
    ]
    record.results = {type(result): result for result in results}
    return record


def changed_steps(**changes: dict) -> set[str]:
    before, after = step_graph(IngestConfig()).keys, step_graph(IngestConfig.model_validate(changes)).keys
    return {name for name in before if before[name] != after[name]}


def test_default_keys_change_only_with_a_version() -> None:
    assert step_graph(IngestConfig()).keys == KEYS_OF_0_3_0 | CHANGED_SINCE_0_3_0


def results(probe_variant: str, words_variant: str) -> Callable[[type], Any]:
    """A source whose file, and whose words, are set apart from those that 0.3.0 measured right."""
    probe = Probe(4.0, 640, 360, 25.0, "h264", "aac", True, transfer=probe_variant)
    made = {Probe: probe, Transcript: Transcript(variant=words_variant)}
    return made.get


def test_source_with_a_variant_has_keys_of_its_own_in_later_steps() -> None:
    graph = step_graph(IngestConfig())
    names = [step.name for step in STEPS]

    def unchanged(result_of: Callable[[type], Any]) -> set[str]:
        return {name for name in names if graph.key(name, result_of) == graph.keys[name]}

    assert unchanged(results("", "")) == set(names)
    assert unchanged({}.get) == set(names)
    assert unchanged(results("smpte2084", "")) == {"fetch", "probe"}
    of_words = {"faces", "text", "propose", "listen", "sync", "fingerprint", "measure", "cut"}
    assert unchanged(results("", "words 3")) == set(names) - of_words
    variants = [results(*pair) for pair in (("", ""), ("a", ""), ("b", ""), ("", "c"), ("a", "c"))]
    for name in of_words:
        assert len({graph.key(name, variant) for variant in variants}) == len(variants)


def test_words_of_0_3_0_are_found_under_their_key() -> None:
    graph = step_graph(IngestConfig())
    assert graph.earlier_key("transcribe", {}.get) == KEYS_OF_0_3_0["transcribe"]
    assert graph.keys["transcribe"] != KEYS_OF_0_3_0["transcribe"]
    assert graph.earlier_key("transcribe", results("a", "")) != KEYS_OF_0_3_0["transcribe"]
    changed = step_graph(IngestConfig.model_validate({"transcription": {"language": "de"}}))
    assert changed.earlier_key("transcribe", {}.get) != KEYS_OF_0_3_0["transcribe"]
    assert changed.keys["propose"] != graph.keys["propose"]


def test_names_modules_pools_and_needs_are_consistent() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    assert [step.__module__.rpartition(".")[2] for step in STEPS] == names
    pools = [step.pool for step in STEPS]
    assert pools == sorted(pools, key=POOLS.index)
    assert set(pools) == set(POOLS)
    for index, step in enumerate(STEPS):
        assert set(step.needs) <= set(names[:index]), step.name
    results = [step.result for step in STEPS if step.result is not None]
    assert len(set(results)) == len(results)
    assert {step.name for step in STEPS if step.result is None} == {"decode"}
    assert all(step.needs[0] == "decode" for step in STEPS if issubclass(step, FrameStep))


@pytest.mark.parametrize("has_audio", [True, False])
def test_each_step_fills_exactly_the_signals_that_the_table_assigns_to_it(has_audio: bool) -> None:
    record = measured_record(has_audio)
    assigned = {signal.step for signal in SIGNALS.values()}
    assert assigned <= {step.name for step in STEPS}
    for step in STEPS:
        expected = signals_of(step.name) if step.name in assigned else ()
        assert set(step.signals(record, 0)) == set(expected), step.name
        if has_audio:
            assert None not in step.signals(record, 0).values(), step.name


def test_clip_row_has_every_column_of_the_table() -> None:
    row = clip_row(measured_record(), 0, step_graph(IngestConfig()))
    assert set(row) == set(schema("clips").names)
    assert (row["speaker"], row["transcript"], row["language"]) == ("abababababab-SA", "hello world", "en")
    assert row["versions"]["key"] == CHANGED_SINCE_0_3_0["measure"]
    assert row["versions"]["steps"] == ",".join(f"{step.name}={step.version}" for step in STEPS)


def test_setting_changes_keys_of_its_step_and_dependents_only() -> None:
    assert changed_steps(sync={"max_shift_ms": 500}) == {"sync", "fingerprint", "measure", "cut"}
    assert changed_steps(cut={"crf": 20}) == {"cut"}
    assert "transcribe" not in changed_steps(shots={"threshold": 0.4})
    dependents = {"diarize", "transcribe", "faces", "propose", "sync", "cut"}
    assert changed_steps(diarization={"cluster_threshold": 0.5}) >= dependents
    resources = {"limits": {"step_seconds": 9}, "pools": {"speech": {"workers": 7}}}
    assert not changed_steps(**resources, sources={"allow_http": True})


def test_every_section_that_changes_results_belongs_to_a_step() -> None:
    read = {setting.split(".")[0] for step in STEPS for setting in step.settings}
    free = {"sources", "limits", "pools", "device", "scratch_gb", "commit_sources", "commit_seconds"}
    assert set(IngestConfig.model_fields) == read | free
