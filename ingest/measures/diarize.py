"""Step `diarize`: speaker turns and a speaker embedding for each speaker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.audio import AudioFile, made_audio
from uniavgen.ingest.measures.clip_parts import covered_seconds
from uniavgen.ingest.models.diarizer import EMBEDDED, Diarizer
from uniavgen.ingest.records import Diarization, Probe, Proposal, Proposals, SourceRecord, Span
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.weights import resolve


class DiarizeStep(Step):
    """Who speaks when."""

    name = "diarize"
    pool = "speech"
    version = "2"
    needs = ("sound",)
    settings = ("diarization",)
    result = Diarization
    _diarizer: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        if config.diarization.model == EMBEDDED:
            resolve("ecapa", config.diarization.ecapa_folder or None)

    def load(self) -> None:
        self._diarizer = self._diarizer or Diarizer(self.config.diarization, self.config.device)

    def try_models(self) -> None:
        with made_audio(1.0) as audio:
            self._diarizer.diarize(audio)

    def measure(self, record: SourceRecord) -> Diarization:
        return Diarization(*self._diarizer.diarize(record.result(AudioFile)))

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        if not record.result(Probe).has_audio:
            return dict.fromkeys(signals_of("diarize"))
        return speaker_signals(record.result(Proposals).clips[index], record.result(Diarization).turns)


def speaker_signals(clip: Proposal, turns: Sequence[Span]) -> dict[str, float | None]:
    """Signals of the speaker turns in a clip. Without a named speaker every turn counts as its speaker's."""
    start_s, end_s = clip.start_s, clip.end_s
    within = [turn for turn in turns if turn.end_s > start_s and turn.start_s < end_s]
    main = [turn for turn in within if turn.label == clip.speaker] if clip.speaker else within
    others = [turn for turn in within if turn.label != clip.speaker] if clip.speaker else []
    main_s, others_s = covered_seconds(main, start_s, end_s), covered_seconds(others, start_s, end_s)
    overlap_s = main_s + others_s - covered_seconds(within, start_s, end_s)
    return {
        "speech_ratio": main_s / (end_s - start_s),
        "overlap_ratio": overlap_s / (end_s - start_s),
        "speaker_count": float(len({turn.label for turn in within})),
    }
