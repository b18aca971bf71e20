"""Diarization of a labelled recording, of planted conversations and over chunks; clustering against
references.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.models.diarizer import (
    SILENT,
    Diarizer,
    join_turns_at_seams,
    labels_by_overlap,
    relabel_in_order,
)
from uniavgen.ingest.models.speaker_embedding import (
    VOICE_SIZE,
    absorb_small_clusters,
    cluster_voices,
    merge_clusters,
    unit_length,
)
from uniavgen.ingest.records import AUDIO_RATE, Span
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from pyannote.core import Annotation


def saved(folder: Path, pcm: np.ndarray, name: str = "sound") -> AudioFile:
    path = folder / f"{name}.s16"
    pcm.astype(np.int16).tofile(path)
    return AudioFile(str(path), len(pcm))


def annotation(turns: list[Span]) -> Annotation:
    from pyannote.core import Annotation, Segment

    found = Annotation()
    for index, turn in enumerate(turns):
        found[Segment(turn.start_s, turn.end_s), index] = turn.label
    return found


def error_rate(truth: Annotation, turns: list[Span]) -> float:
    from pyannote.metrics.diarization import DiarizationErrorRate

    return float(DiarizationErrorRate()(truth, annotation(turns)))


@pytest.fixture(scope="module")
def diarizer() -> Diarizer:
    import torch

    torch.set_num_threads(1)
    return Diarizer(DiarizationConfig())


@pytest.fixture(scope="module")
def dialogue() -> tuple[np.ndarray, Annotation]:
    """pyannote's sample, a telephone call as int16 at 16 kHz, and its labelled turns."""
    import pyannote.audio
    import soundfile
    from pyannote.database.util import load_rttm

    sample = Path(pyannote.audio.__file__).parent / "sample" / "sample"
    pcm, rate = soundfile.read(f"{sample}.wav", dtype="int16")
    assert rate == AUDIO_RATE
    (truth,) = load_rttm(f"{sample}.rttm").values()
    return pcm, truth


def spoken(voice: str, *sentences: int) -> list[np.ndarray]:
    """Sentences of the demo in one of its voices, float at 16 kHz."""
    from scipy.signal import resample_poly

    from uniavgen.orchestration.demo import script, speech

    return [resample_poly(speech.say(script.SENTENCES[i], voice).waveform, 1, 3) for i in sentences]


def pcm_of(*parts: np.ndarray) -> np.ndarray:
    """The parts with half a second of room noise around each."""
    room = np.random.default_rng(0).normal(0, 3e-4, AUDIO_RATE // 2)
    return (np.concatenate([room, *[x for part in parts for x in (part, room)]]) * 32767).astype(np.int16)


@pytest.mark.slow
def test_diarization_error_rate_is_at_most_ten_percent(
    tmp_path: Path, diarizer: Diarizer, dialogue: tuple[np.ndarray, Annotation]
) -> None:
    pcm, truth = dialogue
    turns, voices = diarizer.diarize(saved(tmp_path, pcm))
    assert error_rate(truth, turns) <= 0.10
    assert set(voices) == {"SPEAKER_00", "SPEAKER_01"}
    assert all(
        len(voice) == VOICE_SIZE and np.linalg.norm(voice) == pytest.approx(1, abs=1e-4)
        for voice in voices.values()
    )
    assert all(0 <= turn.start_s < turn.end_s <= len(pcm) / AUDIO_RATE for turn in turns)
    assert diarizer.diarize(saved(tmp_path, np.zeros(3 * AUDIO_RATE))) == ([], {})
    assert diarizer.diarize(saved(tmp_path, np.zeros(0))) == ([], {})


@pytest.mark.slow
def test_speakers_keep_their_labels_over_chunks(
    tmp_path: Path,
    diarizer: Diarizer,
    dialogue: tuple[np.ndarray, Annotation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pcm, truth = dialogue
    monkeypatch.setattr(diarizer, "config", DiarizationConfig(piece_s=13.0))
    turns, voices = diarizer.diarize(saved(tmp_path, pcm))
    assert set(voices) == {"SPEAKER_00", "SPEAKER_01"}
    assert error_rate(truth, turns) <= 0.10


@pytest.mark.slow
def test_single_voice_overlap_and_returning_voice(tmp_path: Path, diarizer: Diarizer) -> None:
    from pyannote.core import Segment

    joe, ann, bob = spoken("joe", 0, 1, 2), spoken("ann", 3, 4), spoken("bob", 5, 6)
    alone, alone_voices = diarizer.diarize(saved(tmp_path, pcm_of(*joe)))
    assert {turn.label for turn in alone} == {"SPEAKER_00"}
    over = joe[0].copy()  # ann falls into joe's last 1.5 s
    over = np.pad(over, (0, len(ann[0])))
    start = len(joe[0]) - round(1.5 * AUDIO_RATE)
    over[start : start + len(ann[0])] += ann[0]
    turns, voices = diarizer.diarize(saved(tmp_path, pcm_of(over, ann[1], joe[1])))
    assert set(voices) == {"SPEAKER_00", "SPEAKER_01"}
    first, second = (
        annotation([t for t in turns if t.label == label]).get_timeline() for label in sorted(voices)
    )
    both = first.crop(second, mode="intersection")
    planted = Segment(0.5 + start / AUDIO_RATE, 0.5 + len(joe[0]) / AUDIO_RATE)
    assert both.crop(planted).duration() > 0.6 * both.duration()
    assert both.crop(planted).duration() > 0.5
    _, others = diarizer.diarize(saved(tmp_path, pcm_of(ann[0], bob[0], bob[1])))
    known = {
        "joe": [alone_voices["SPEAKER_00"], voices["SPEAKER_00"]],
        "ann": [voices["SPEAKER_01"], others["SPEAKER_00"]],
    }
    known["bob"] = [others["SPEAKER_01"]]
    threshold = 1 - DiarizationConfig().cluster_threshold
    for name, own in known.items():
        others_ = [voice for other, theirs in known.items() if other != name for voice in theirs]
        assert (np.array(own) @ np.array(own).T).min() > threshold
        assert (np.array(own) @ np.array(others_).T).max() < threshold


voice_sets = st.integers(0, 10_000).map(
    lambda seed: unit_length(
        np.random.default_rng(seed).normal(size=(4, 8))[np.random.default_rng(seed + 1).integers(0, 4, 24)]
        + 0.4 * np.random.default_rng(seed + 2).normal(size=(24, 8))
    )
)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in labels}


@given(voice_sets, st.floats(0.1, 1.2))
@settings(deadline=None, max_examples=60)
def test_merge_clusters_equals_one_average_linkage(voices: np.ndarray, threshold: float) -> None:
    singles = merge_clusters(voices, np.ones(len(voices)), threshold)
    assert partition(singles) == partition(cluster_voices(voices, threshold))
    early = cluster_voices(voices, threshold / 2)
    means = np.stack([voices[early == k].mean(axis=0) for k in range(early.max() + 1)])
    late = merge_clusters(means, np.bincount(early), threshold)[early]
    assert partition(late) == partition(singles)


def test_clustering_of_one_voice_and_of_none() -> None:
    assert cluster_voices(np.ones((1, 4)), 0.5).tolist() == [0]
    assert cluster_voices(np.zeros((0, 4)), 0.5).tolist() == []
    assert merge_clusters(np.ones((1, 4)), np.ones(1), 0.5).tolist() == [0]


def test_small_clusters_join_the_nearest_large_one() -> None:
    means = np.array([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0], [0.1, 1.0]])
    assert absorb_small_clusters(means, np.array([9, 2, 9, 1]), 5).tolist() == [0, 0, 1, 1]
    assert absorb_small_clusters(means, np.array([1, 2, 1, 1]), 5).tolist() == [0, 0, 0, 0]


def test_short_voice_gets_the_label_of_overlapping_activity() -> None:
    from pyannote.core import SlidingWindow

    windows, frames = 5, 10
    active = np.zeros((windows, frames, 2), bool)
    truth = np.zeros((2, 20), bool)
    truth[0, 2:9], truth[1, 8:11] = True, True  # the second falls in and says little
    labels = np.full((windows, 2), SILENT)
    for window in range(windows):  # windows of ten frames, two apart; the speakers' places swap
        for speaker in range(2):
            active[window, :, (speaker + window) % 2] = truth[speaker, 2 * window : 2 * window + frames]
        if window in (0, 2):
            labels[window] = [0, 1]
    unknown = active.any(axis=1) & (labels < 0)
    found = labels_by_overlap(active, labels, unknown, SlidingWindow(duration=5.0, step=1.0), 2)
    for window in (1, 3, 4):
        for speaker in range(2):
            if active[window, :, (speaker + window) % 2].any():
                assert found[window, (speaker + window) % 2] == speaker


def test_turns_that_meet_at_a_seam_are_joined() -> None:
    turns = [Span(0, 10, "1"), Span(10, 12, "1"), Span(10, 11, "2"), Span(12, 13, "1")]
    assert join_turns_at_seams(turns, {0.0, 10.0}) == [Span(0, 12, "1"), Span(12, 13, "1"), Span(10, 11, "2")]


def test_speakers_are_numbered_by_first_turn() -> None:
    turns, voices = relabel_in_order([Span(5, 6, "0"), Span(1, 2, "7")], {"0": np.ones(2), "7": np.zeros(2)})
    assert turns == [Span(1, 2, "SPEAKER_00"), Span(5, 6, "SPEAKER_01")]
    assert voices == {"SPEAKER_00": [0, 0], "SPEAKER_01": [1, 1]}


@pytest.mark.slow
def test_named_pipeline_speakers_are_merged_over_chunks(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("pipeline:\n  name: tone_pipeline.TonePipeline\n  params: {}\n")
    times = np.arange(3 * AUDIO_RATE) / AUDIO_RATE
    low, high, silence = (
        np.sin(2 * np.pi * 300 * times),
        np.sin(2 * np.pi * 2500 * times),
        np.zeros(AUDIO_RATE),
    )
    pcm = 8000 * np.concatenate([low, silence, low, silence, high, silence, high, silence, low, silence])
    turns, voices = Diarizer(DiarizationConfig(model=str(tmp_path), piece_s=10.0)).diarize(
        saved(tmp_path, pcm)
    )
    assert sorted(voices) == ["SPEAKER_00", "SPEAKER_01"]
    seconds = {label: sum(t.end_s - t.start_s for t in turns if t.label == label) for label in voices}
    assert seconds == {"SPEAKER_00": pytest.approx(9, abs=1.1), "SPEAKER_01": pytest.approx(6, abs=1.1)}
    assert all(t.label == "SPEAKER_01" for t in turns if 8.5 < t.start_s < 14.5)


@pytest.mark.slow
def test_unavailable_pipeline_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    for name in (str(tmp_path / "nothing"), "pyannote/speaker-diarization-community-1"):
        with pytest.raises(UserError, match=r"cannot be loaded.*HF_TOKEN") as caught:
            Diarizer(DiarizationConfig(model=name))
        assert caught.value.kind == "missing-weights"
        assert "\n" not in str(caught.value)
