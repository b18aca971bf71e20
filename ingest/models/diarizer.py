"""Speaker diarization with pyannote.audio: turns, and one speaker embedding per speaker.

Weights need no account.

Segmentation is the model bundled with WhisperX, embeddings are SpeechBrain's ECAPA-TDNN
(`speaker_embedding`). A long source is processed in chunks, and its speakers are clustered over all chunks. A
whole pyannote pipeline may be configured instead. The settings in `DiarizationConfig` lie on a plateau that
`tests/benchmarks/ingest/diarization_sweep.py` prints.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.io.audio import AudioFile, split_at_pauses
from uniavgen.ingest.models.lean_imports import lean_imports
from uniavgen.ingest.models.speaker_embedding import (
    MIN_SPEECH_S,
    VoiceEncoder,
    absorb_small_clusters,
    cluster_voices,
    merge_clusters,
    remove_lazy_modules,
    unit_length,
)
from uniavgen.ingest.records import AUDIO_RATE, Span
from uniavgen.shards.errors import UserError

EMBEDDED = "embedded"

CLEAR_SHARE = 0.2
"""A speaker of a window takes part in clustering when alone for this share of the window (pyannote's
value)."""

MIN_CLUSTER_SHARE = 0.2
"""In a short source a cluster is a speaker if it has this share of the windows (pyannote: 0.1, which makes a
few bad windows a speaker where there are few windows)."""

SILENT = -2
"""Label of a window's speaker who says nothing (pyannote's value)."""


@dataclass
class ChunkSpeech:
    """Segmentation of one chunk before clustering: W windows of F frames with up to S speakers local to each
    window.

    `scores` is pyannote's SlidingWindowFeature [W, F, S] (0..1), `active` bool [W, F, S], `count` a
    SlidingWindowFeature [frames, 1] of simultaneous speakers, `voices` float32 [W, S, 192], NaN where there
    is none.
    """

    scores: Any
    active: np.ndarray
    count: Any
    voices: np.ndarray

    def clear(self) -> np.ndarray:
        """Speakers with an embedding and enough speech without overlap to be reliable: bool [W, S]."""
        alone = self.active & (self.active.sum(axis=2, keepdims=True) == 1)
        enough = alone.sum(axis=1) >= CLEAR_SHARE * self.active.shape[1]
        return np.asarray(enough & np.isfinite(self.voices).all(axis=2))


class Diarizer:
    """The configured diarization, loaded once."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # telemetry off, before the import
        warnings.filterwarnings("ignore", module="pyannote|torchaudio|speechbrain")
        self.config = config
        try:
            self._model = (
                EmbeddedDiarizer(config, device)
                if config.model == EMBEDDED
                else NamedPipeline(config, device)
            )
        finally:
            remove_lazy_modules()

    def diarize(self, audio: AudioFile) -> tuple[list[Span], dict[str, list[float]]]:
        """Turns in order of time and the embedding of each speaker; both empty where nobody speaks."""
        if not audio.samples:
            return [], {}
        chunks = split_at_pauses(audio, self.config.piece_s)
        turns, voices = self._model.diarize_chunks(audio, chunks)
        # windows extend past the end of a chunk
        inside = [
            Span(
                chunk.start_s + max(0.0, turn.start_s),
                min(chunk.end_s, chunk.start_s + turn.end_s),
                turn.label,
            )
            for chunk, turns_of_chunk in zip(chunks, turns, strict=True)
            for turn in turns_of_chunk
            if chunk.start_s + turn.start_s < chunk.end_s
        ]
        return relabel_in_order(join_turns_at_seams(inside, {chunk.start_s for chunk in chunks}), voices)


class EmbeddedDiarizer:
    """Segmentation in windows, an embedding per speaker of a window, one clustering over all chunks."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        import torch

        self.config = config
        with lean_imports():
            import lightning.pytorch.utilities.argparse  # noqa: F401  Lightning's migration reads it
            import pyannote.audio.pipelines.utils
            import pyannote.audio.utils.signal  # noqa: F401  used for every chunk
            import whisperx
            from pyannote.audio import Inference, Model

            self._encoder = VoiceEncoder(config, device)
            model = Model.from_pretrained(Path(whisperx.__file__).parent / "assets" / "pytorch_model.bin")
        self._window_s = float(model.specifications.duration)
        self._receptive_field = model.receptive_field
        self._segment = Inference(
            model,
            duration=self._window_s,
            step=config.segmentation_step * self._window_s,
            skip_aggregation=True,
            batch_size=config.batch_size,
            device=torch.device(device),
        )

    def diarize_chunks(
        self, audio: AudioFile, chunks: list[Span]
    ) -> tuple[list[list[Span]], dict[str, np.ndarray]]:
        """Turns per chunk, in seconds from its start, and embeddings by label; labels are numbers over all
        chunks.
        """
        speech = [self.segment(audio.span(chunk.start_s, chunk.end_s)) for chunk in chunks]
        stride_s = self.config.segmentation_step * self._window_s * self.config.voice_stride
        labels, voices = assign_speakers(
            speech, self.config.cluster_threshold, self.config.min_voice_s / stride_s
        )
        turns = [chunk_turns(chunk, names) for chunk, names in zip(speech, labels, strict=True)]
        return turns, {str(number): voice for number, voice in enumerate(voices)}

    def segment(self, pcm: np.ndarray) -> ChunkSpeech:
        """Speaker activity in int16 [n], and the embeddings of every `voice_stride`-th window."""
        import torch

        waveform = pcm.astype(np.float32) / 32768
        scores = self._segment({"waveform": torch.from_numpy(waveform)[None], "sample_rate": AUDIO_RATE})
        chunk = self.chunk_speech(scores, np.zeros(0))
        chunk.voices = self._embed(waveform, chunk.active)
        return chunk

    def chunk_speech(self, scores: Any, voices: np.ndarray) -> ChunkSpeech:
        """Activity and number of simultaneous speakers from segmentation scores."""
        from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
        from pyannote.audio.utils.signal import binarize

        binary = binarize(scores, onset=self.config.segmentation_threshold, initial_state=False)
        count = SpeakerDiarizationMixin.speaker_count(binary, self._receptive_field, warm_up=(0.0, 0.0))
        return ChunkSpeech(scores, np.nan_to_num(binary.data) > 0.5, count, voices)

    def _embed(self, waveform: np.ndarray, active: np.ndarray) -> np.ndarray:
        windows, frames, speakers = active.shape
        length = round(self._window_s * AUDIO_RATE)
        step = round(self.config.segmentation_step * self._window_s * AUDIO_RATE)
        waveform = np.pad(waveform, (0, max(0, (windows - 1) * step + length - len(waveform))))
        frame_of = np.arange(length) * frames // length
        alone = active & (active.sum(axis=2, keepdims=True) < 2)
        min_frames = math.ceil(frames * MIN_SPEECH_S / self._window_s)
        speech = []
        for window in range(0, windows, self.config.voice_stride):
            for speaker in range(speakers):
                # speech without overlap, where there is enough of it
                clean = alone[window, :, speaker]
                mask = clean if clean.sum() > min_frames else active[window, :, speaker]
                speech.append(waveform[window * step : window * step + length][mask[frame_of]])
        voices = np.full((windows, speakers, self._encoder.size), np.nan, np.float32)
        voices[:: self.config.voice_stride] = self._encoder.encode(speech).reshape(
            -1, speakers, self._encoder.size
        )
        return voices


class NamedPipeline:
    """A whole pyannote pipeline by name; the speakers of its chunks are merged by their embeddings."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        import torch
        from pyannote.audio import Pipeline

        self.config = config
        problem = "it needs a Hugging Face token in HF_TOKEN, and its terms accepted there"
        try:
            self._pipeline = Pipeline.from_pretrained(config.model)
        except Exception as error:  # every library below raises its own
            self._pipeline, problem = (
                None,
                (str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            )
        if self._pipeline is None:
            raise UserError(
                f"the diarization pipeline cannot be loaded: {problem}",
                where=config.model,
                hint=f"name a folder with config.yaml, set HF_TOKEN, or diarization.model={EMBEDDED}",
                kind="missing-weights",
            )
        self._pipeline.to(torch.device(device))

    def diarize_chunks(
        self, audio: AudioFile, chunks: list[Span]
    ) -> tuple[list[list[Span]], dict[str, np.ndarray]]:
        """Turns per chunk, in seconds from its start, and embeddings by label; labels are numbers over all
        chunks.
        """
        import torch

        turns: list[list[Span]] = []
        local: list[tuple[int, str]] = []
        means, sizes = [], []
        for index, chunk in enumerate(chunks):
            pcm = audio.span(chunk.start_s, chunk.end_s).astype(np.float32) / 32768
            result = self._pipeline(
                {"waveform": torch.from_numpy(pcm)[None], "sample_rate": AUDIO_RATE, "uri": "source"}
            )
            tracks = result.speaker_diarization.itertracks(yield_label=True)
            turns.append([Span(float(turn.start), float(turn.end), label) for turn, _, label in tracks])
            for label, voice in zip(
                result.speaker_diarization.labels(), result.speaker_embeddings, strict=False
            ):
                local.append((index, label))
                means.append(unit_length(np.nan_to_num(voice)))
                sizes.append(result.speaker_diarization.label_duration(label))
        if not local:
            return turns, {}
        joined = merge_clusters(np.stack(means), np.array(sizes), self.config.cluster_threshold)
        names = {key: str(number) for key, number in zip(local, joined, strict=True)}
        voices = {
            str(n): unit_length(
                np.average(np.stack(means)[joined == n], axis=0, weights=np.array(sizes)[joined == n])
            )
            for n in np.unique(joined)
        }
        named = [
            [Span(t.start_s, t.end_s, names[i, t.label]) for t in chunk_turns]
            for i, chunk_turns in enumerate(turns)
        ]
        return named, {label: voice for label, voice in voices.items() if np.any(voice)}


def assign_speakers(
    chunks: Sequence[ChunkSpeech], threshold: float, min_windows: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Labels int [W, S] for each chunk, from 0 up (`SILENT` for silence), and the speakers' embeddings
    [speakers, 192].

    Clear embeddings are clustered in each chunk, the clusters merged over all chunks, and those of fewer than
    `min_windows` windows given to the nearest. Then every embedding gets the nearest speaker, and a window's
    speaker without embedding the one whose activity overlaps most.
    """
    clusters = [cluster_voices(chunk.voices[chunk.clear()], threshold) for chunk in chunks]
    members = [unit_length(chunk.voices[chunk.clear()]) for chunk in chunks]
    if not sum(len(labels) for labels in clusters):
        return [np.where(chunk.active.any(axis=1), 0, SILENT) for chunk in chunks], np.zeros(
            (0, 0), np.float32
        )
    sums = np.concatenate([_sum_by_label(m, c) for m, c in zip(members, clusters, strict=True) if len(c)])
    sizes = np.concatenate([np.bincount(c) for c in clusters if len(c)])
    joined = merge_clusters(sums / sizes[:, None], sizes, threshold)
    sums, sizes = _sum_by_label(sums, joined), _sum_by_label(sizes, joined)
    at_least = max(1, min(round(min_windows), round(MIN_CLUSTER_SHARE * sizes.sum())))
    voices = unit_length(_sum_by_label(sums, absorb_small_clusters(sums, sizes, at_least)))
    return [_labels(chunk, voices) for chunk in chunks], voices


def _sum_by_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([values[labels == label].sum(axis=0) for label in range(labels.max() + 1)])


def _labels(chunk: ChunkSpeech, voices: np.ndarray) -> np.ndarray:
    spoken = chunk.active.any(axis=1)
    known = spoken & np.isfinite(chunk.voices).all(axis=2)
    labels = np.full(spoken.shape, SILENT)
    labels[known] = (unit_length(chunk.voices[known]) @ voices.T).argmax(axis=1)
    return labels_by_overlap(chunk.active, labels, spoken & ~known, chunk.scores.sliding_window, len(voices))


def labels_by_overlap(
    active: np.ndarray, labels: np.ndarray, unknown: np.ndarray, windows: Any, speakers: int
) -> np.ndarray:
    """Labels with the `unknown` [W, S] filled in: each takes the speaker whose activity in the other windows
    overlaps most (intersection over union), never the same for two of one window; without overlap the speaker
    nearest in time.
    """
    from scipy.optimize import linear_sum_assignment

    labels = labels.copy()
    count, frames, _ = active.shape
    starts = np.round(np.arange(count) * windows.step / windows.duration * frames).astype(int)
    activity = np.zeros((starts[-1] + frames, speakers), np.float32)
    coverage = np.zeros(len(activity), np.float32)
    for window, start in enumerate(starts):
        rows = np.flatnonzero(labels[window] >= 0)
        for row in rows:
            activity[start : start + frames, labels[window, row]] += active[window, :, row]
        coverage[start : start + frames] += len(rows) > 0
    likely = activity > 0.5 * np.maximum(coverage, 1)[:, None]
    spoken_at = np.flatnonzero(likely.any(axis=1))
    for window in map(int, np.flatnonzero(unknown.any(axis=1))):
        rows = np.flatnonzero(unknown[window])
        unknown_activity = active[window][:, rows].T.astype(np.float32)
        others = likely[starts[window] : starts[window] + frames].astype(np.float32)
        shared = unknown_activity @ others
        similarity = shared / np.maximum(
            unknown_activity.sum(axis=1)[:, None] + others.sum(axis=0) - shared, 1
        )
        for index, label in zip(*linear_sum_assignment(similarity, maximize=True), strict=True):
            if similarity[index, label] > 0:
                labels[window, rows[index]] = label
        for row in np.flatnonzero(unknown[window] & (labels[window] < 0)):
            middle = starts[window] + float(np.flatnonzero(active[window, :, row]).mean())
            nearest = spoken_at[np.abs(spoken_at - middle).argmin()] if len(spoken_at) else 0
            labels[window, row] = int(activity[nearest].argmax())
    return labels


def chunk_turns(chunk: ChunkSpeech, labels: np.ndarray) -> list[Span]:
    """Turns in seconds from the chunk's start, labelled with the speaker's number: pyannote's aggregation
    over windows.
    """
    from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
    from pyannote.core import SlidingWindowFeature

    if not np.nanmax(chunk.count.data, initial=0):
        return []
    windows, frames, _ = chunk.active.shape
    scores = np.full((windows, frames, labels.max() + 1), np.nan, np.float32)
    for window in range(windows):
        for label in np.unique(labels[window][labels[window] >= 0]):
            scores[window, :, label] = chunk.scores.data[window][:, labels[window] == label].max(axis=1)
    by_speaker = SlidingWindowFeature(scores, chunk.scores.sliding_window)
    annotation = SpeakerDiarizationMixin.to_annotation(
        SpeakerDiarizationMixin.to_diarization(by_speaker, chunk.count)
    )
    return [
        Span(float(turn.start), float(turn.end), str(label))
        for turn, _, label in annotation.itertracks(yield_label=True)
    ]


def join_turns_at_seams(turns: list[Span], seams: set[float]) -> list[Span]:
    """The turns, with those of one speaker that meet at the seam of two chunks joined."""
    joined: list[Span] = []
    for turn in sorted(turns, key=lambda turn: (turn.label, turn.start_s)):
        before = joined[-1] if joined else None
        if before and before.label == turn.label and turn.start_s in seams and before.end_s == turn.start_s:
            joined[-1] = Span(before.start_s, turn.end_s, turn.label)
        else:
            joined.append(turn)
    return joined


def relabel_in_order(
    turns: list[Span], voices: dict[str, np.ndarray]
) -> tuple[list[Span], dict[str, list[float]]]:
    """Turns in order of time and embeddings, relabelled SPEAKER_00, SPEAKER_01, ... in order of the first
    turn.
    """
    ordered = sorted(turns, key=lambda turn: (turn.start_s, turn.end_s, turn.label))
    names: dict[str, str] = {}
    for turn in ordered:
        names.setdefault(turn.label, f"SPEAKER_{len(names):02d}")
    return (
        [Span(turn.start_s, turn.end_s, names[turn.label]) for turn in ordered],
        {name: [float(x) for x in voices[label]] for label, name in names.items() if label in voices},
    )
