"""Who speaks when, and how each voice sounds: pyannote.audio's diarization with weights that need no account.

Goes in: a `Sound`. Comes out: turns (`Span`s labelled SPEAKER_00, ...; they may overlap) and a voice of unit length per
speaker. Segmentation is the model bundled with WhisperX, voices are SpeechBrain's ECAPA-TDNN (`voices`). A long source is
heard piece by piece, its speakers are named over all pieces together. A whole pyannote pipeline may be named instead.
Settings: see `DiarizationConfig`; they lie on a plateau that `tests/benchmarks/ingest/diarization_sweep.py` prints.
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
from uniavgen.ingest.models.speaker_embedding import (
    SHORTEST_VOICE_S,
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
"""A window's speaker helps to find the voices when alone for this share of the window (pyannote's own)."""

SMALLEST_SHARE = 0.2
"""In a short source a voice is one where this share of the windows has it (pyannote: 0.1; with few windows that lets through
a handful of bad ones as a speaker of their own)."""

NOBODY = -2
"""Label of a window's speaker who says nothing (pyannote's own)."""


@dataclass
class ChunkSpeech:
    """One piece, before its speakers have names. W windows of F frames, with up to S speakers who are local to a window.

    `scores` is pyannote's SlidingWindowFeature [W, F, S] (0..1), `active` bool [W, F, S], `count` its SlidingWindowFeature
    [frames, 1] of speakers at once, `voices` float32 [W, S, 192], NaN where there is none.
    """

    scores: Any
    active: np.ndarray
    count: Any
    voices: np.ndarray

    def clear(self) -> np.ndarray:
        """bool [W, S]: who has a voice, and is heard alone for long enough that it can be trusted."""
        alone = self.active & (self.active.sum(axis=2, keepdims=True) == 1)
        heard_enough = alone.sum(axis=1) >= CLEAR_SHARE * self.active.shape[1]
        return np.asarray(heard_enough & np.isfinite(self.voices).all(axis=2))


class Diarizer:
    """The diarization that the configuration names, loaded once."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it counts its users otherwise
        warnings.filterwarnings("ignore", module="pyannote|torchaudio|speechbrain")
        self.config = config
        try:
            self._road = (
                EmbeddedDiarizer(config, device)
                if config.model == EMBEDDED
                else NamedPipeline(config, device)
            )
        finally:
            remove_lazy_modules()

    def diarize(self, sound: AudioFile) -> tuple[list[Span], dict[str, list[float]]]:
        """Turns, in order, and each speaker's voice; nothing where nobody speaks."""
        if not sound.samples:
            return [], {}
        pieces = split_at_pauses(sound, self.config.piece_s)
        turns, voices = self._road.speakers(sound, pieces)
        # windows reach past a piece's end
        inside = [
            Span(
                piece.start_s + max(0.0, turn.start_s),
                min(piece.end_s, piece.start_s + turn.end_s),
                turn.label,
            )
            for piece, found in zip(pieces, turns, strict=True)
            for turn in found
            if piece.start_s + turn.start_s < piece.end_s
        ]
        return relabel_in_order(join_turns_at_seams(inside, {piece.start_s for piece in pieces}), voices)


class EmbeddedDiarizer:
    """Segmentation in windows, a voice per window's speaker, one clustering over all pieces."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        import torch
        import whisperx
        from pyannote.audio import Inference, Model

        self.config = config
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

    def speakers(
        self, sound: AudioFile, pieces: list[Span]
    ) -> tuple[list[list[Span]], dict[str, np.ndarray]]:
        """Turns per piece, on the piece's clock, and voices; labels are numbers that hold over all pieces."""
        heard = [self.hear(sound.span(piece.start_s, piece.end_s)) for piece in pieces]
        stride_s = self.config.segmentation_step * self._window_s * self.config.voice_stride
        labels, voices = assign_speakers(
            heard, self.config.cluster_threshold, self.config.min_voice_s / stride_s
        )
        turns = [chunk_turns(piece, names) for piece, names in zip(heard, labels, strict=True)]
        return turns, {str(number): voice for number, voice in enumerate(voices)}

    def hear(self, pcm: np.ndarray) -> ChunkSpeech:
        """Who is active where in int16 [n], and the voices of every `voice_stride`-th window."""
        import torch

        waveform = pcm.astype(np.float32) / 32768
        scores = self._segment({"waveform": torch.from_numpy(waveform)[None], "sample_rate": AUDIO_RATE})
        heard = self.piece(scores, np.zeros(0))
        heard.voices = self._voices(waveform, heard.active)
        return heard

    def piece(self, scores: Any, voices: np.ndarray) -> ChunkSpeech:
        """A piece out of segmentation scores and voices: who is active, how many at once."""
        from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
        from pyannote.audio.utils.signal import binarize

        binary = binarize(scores, onset=self.config.segmentation_threshold, initial_state=False)
        count = SpeakerDiarizationMixin.speaker_count(binary, self._receptive_field, warm_up=(0.0, 0.0))
        return ChunkSpeech(scores, np.nan_to_num(binary.data) > 0.5, count, voices)

    def _voices(self, waveform: np.ndarray, active: np.ndarray) -> np.ndarray:
        windows, frames, speakers = active.shape
        length = round(self._window_s * AUDIO_RATE)
        step = round(self.config.segmentation_step * self._window_s * AUDIO_RATE)
        waveform = np.pad(waveform, (0, max(0, (windows - 1) * step + length - len(waveform))))
        frame_of = np.arange(length) * frames // length
        alone = active & (active.sum(axis=2, keepdims=True) < 2)
        fewest = math.ceil(frames * SHORTEST_VOICE_S / self._window_s)
        spoken = []
        for window in range(0, windows, self.config.voice_stride):
            for speaker in range(speakers):
                # speech that nobody else is heard in, where there is enough of it
                clean = alone[window, :, speaker]
                mask = clean if clean.sum() > fewest else active[window, :, speaker]
                spoken.append(waveform[window * step : window * step + length][mask[frame_of]])
        voices = np.full((windows, speakers, self._encoder.size), np.nan, np.float32)
        voices[:: self.config.voice_stride] = self._encoder.encode(spoken).reshape(
            -1, speakers, self._encoder.size
        )
        return voices


class NamedPipeline:
    """A whole pyannote pipeline by name; the speakers of its pieces are joined by their voices."""

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

    def speakers(
        self, sound: AudioFile, pieces: list[Span]
    ) -> tuple[list[list[Span]], dict[str, np.ndarray]]:
        """Turns per piece, on the piece's clock, and voices; labels are numbers that hold over all pieces."""
        import torch

        turns: list[list[Span]] = []
        local: list[tuple[int, str]] = []
        means, sizes = [], []
        for index, piece in enumerate(pieces):
            pcm = sound.span(piece.start_s, piece.end_s).astype(np.float32) / 32768
            found = self._pipeline(
                {"waveform": torch.from_numpy(pcm)[None], "sample_rate": AUDIO_RATE, "uri": "source"}
            )
            tracks = found.speaker_diarization.itertracks(yield_label=True)
            turns.append([Span(float(turn.start), float(turn.end), label) for turn, _, label in tracks])
            for label, voice in zip(
                found.speaker_diarization.labels(), found.speaker_embeddings, strict=False
            ):
                local.append((index, label))
                means.append(unit_length(np.nan_to_num(voice)))
                sizes.append(found.speaker_diarization.label_duration(label))
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
            [Span(t.start_s, t.end_s, names[i, t.label]) for t in found] for i, found in enumerate(turns)
        ]
        return named, {label: voice for label, voice in voices.items() if np.any(voice)}


def assign_speakers(
    pieces: Sequence[ChunkSpeech], threshold: float, smallest: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Labels int [W, S] for each piece, from 0 up (`NOBODY` for who is silent), and the speakers' voices [speakers, 192].

    Clear voices are clustered piece by piece, the groups joined over all pieces, those of fewer than `smallest` windows
    given to the nearest. Then every voice goes to the nearest speaker, and who has none to the one who is active with them.
    """
    groups = [cluster_voices(piece.voices[piece.clear()], threshold) for piece in pieces]
    members = [unit_length(piece.voices[piece.clear()]) for piece in pieces]
    if not sum(len(found) for found in groups):
        return [np.where(piece.active.any(axis=1), 0, NOBODY) for piece in pieces], np.zeros(
            (0, 0), np.float32
        )
    sums = np.concatenate([_summed(m, g) for m, g in zip(members, groups, strict=True) if len(g)])
    sizes = np.concatenate([np.bincount(g) for g in groups if len(g)])
    joined = merge_clusters(sums / sizes[:, None], sizes, threshold)
    sums, sizes = _summed(sums, joined), _summed(sizes, joined)
    at_least = max(1, min(round(smallest), round(SMALLEST_SHARE * sizes.sum())))
    voices = unit_length(_summed(sums, absorb_small_clusters(sums, sizes, at_least)))
    return [_labels(piece, voices) for piece in pieces], voices


def _summed(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([values[labels == label].sum(axis=0) for label in range(labels.max() + 1)])


def _labels(piece: ChunkSpeech, voices: np.ndarray) -> np.ndarray:
    spoken = piece.active.any(axis=1)
    known = spoken & np.isfinite(piece.voices).all(axis=2)
    labels = np.full(spoken.shape, NOBODY)
    labels[known] = (unit_length(piece.voices[known]) @ voices.T).argmax(axis=1)
    return labels_by_overlap(piece.active, labels, spoken & ~known, piece.scores.sliding_window, len(voices))


def labels_by_overlap(
    active: np.ndarray, labels: np.ndarray, unknown: np.ndarray, windows: Any, speakers: int
) -> np.ndarray:
    """Labels with those of the `unknown` [W, S] filled in: each takes the speaker whose activity in the other windows is
    most like its own (intersection over union), two of one window never the same; else the speaker heard nearest in time."""
    from scipy.optimize import linear_sum_assignment

    labels = labels.copy()
    count, frames, _ = active.shape
    starts = np.round(np.arange(count) * windows.step / windows.duration * frames).astype(int)
    heard = np.zeros((starts[-1] + frames, speakers), np.float32)
    seen = np.zeros(len(heard), np.float32)
    for index, start in enumerate(starts):
        rows = np.flatnonzero(labels[index] >= 0)
        for row in rows:
            heard[start : start + frames, labels[index, row]] += active[index, :, row]
        seen[start : start + frames] += len(rows) > 0
    likely = heard > 0.5 * np.maximum(seen, 1)[:, None]
    spoken_at = np.flatnonzero(likely.any(axis=1))
    for window in np.flatnonzero(unknown.any(axis=1)):
        rows = np.flatnonzero(unknown[window])
        own = active[window][:, rows].T.astype(np.float32)
        others = likely[starts[window] : starts[window] + frames].astype(np.float32)
        shared = own @ others
        alike = shared / np.maximum(own.sum(axis=1)[:, None] + others.sum(axis=0) - shared, 1)
        for place, label in zip(*linear_sum_assignment(alike, maximize=True), strict=True):
            if alike[place, label] > 0:
                labels[window, rows[place]] = label
        for row in np.flatnonzero(unknown[window] & (labels[window] < 0)):
            middle = starts[window] + float(np.flatnonzero(active[window, :, row]).mean())
            nearest = spoken_at[np.abs(spoken_at - middle).argmin()] if len(spoken_at) else 0
            labels[window, row] = int(heard[nearest].argmax())
    return labels


def chunk_turns(piece: ChunkSpeech, labels: np.ndarray) -> list[Span]:
    """Turns on the piece's clock, labelled by the number of their speaker: pyannote's aggregation over its windows."""
    from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
    from pyannote.core import SlidingWindowFeature

    if not np.nanmax(piece.count.data, initial=0):
        return []
    windows, frames, _ = piece.active.shape
    scores = np.full((windows, frames, labels.max() + 1), np.nan, np.float32)
    for window in range(windows):
        for label in np.unique(labels[window][labels[window] >= 0]):
            scores[window, :, label] = piece.scores.data[window][:, labels[window] == label].max(axis=1)
    named = SlidingWindowFeature(scores, piece.scores.sliding_window)
    found = SpeakerDiarizationMixin.to_annotation(SpeakerDiarizationMixin.to_diarization(named, piece.count))
    return [
        Span(float(turn.start), float(turn.end), str(label))
        for turn, _, label in found.itertracks(yield_label=True)
    ]


def join_turns_at_seams(turns: list[Span], seams: set[float]) -> list[Span]:
    """The turns, with those of one speaker that meet at a seam of two pieces made one."""
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
    """Turns in order of time and voices, relabelled SPEAKER_00, SPEAKER_01, ... in the order in which they are first heard."""
    ordered = sorted(turns, key=lambda turn: (turn.start_s, turn.end_s, turn.label))
    names: dict[str, str] = {}
    for turn in ordered:
        names.setdefault(turn.label, f"SPEAKER_{len(names):02d}")
    return (
        [Span(turn.start_s, turn.end_s, names[turn.label]) for turn in ordered],
        {name: [float(x) for x in voices[label]] for label, name in names.items() if label in voices},
    )
