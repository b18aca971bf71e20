"""The steps of ingest: each is a small class that loads its model once and measures one source after another.

Goes in: a `SourceRecord`, which gives the results of earlier steps. Comes out: this step's results by name. Nothing here
knows of Ray: `pipeline` puts the steps into a graph, a test calls them directly.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.clip_files import ClipMedia
from uniavgen.ingest.engine.commits import FORGOTTEN, FORGOTTEN_SAYS
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.engine.step_graph import SPECS
from uniavgen.ingest.io import media
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.download_cache import DownloadCache
from uniavgen.ingest.io.local_files import content_id, file_statuses
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.measures.clip_rows import clip_face, clip_row, face_track, source_columns
from uniavgen.ingest.measures.cutting import cut_clip
from uniavgen.ingest.measures.decode_pass import Watching
from uniavgen.ingest.measures.fingerprints import sound_hash, sound_span, text_hash, video_hash
from uniavgen.ingest.measures.framing import Framing, framing
from uniavgen.ingest.measures.pitch import pitch_hz
from uniavgen.ingest.measures.proposals import propose_clips
from uniavgen.ingest.measures.sound_quality import bandwidth_hz
from uniavgen.ingest.measures.sync import clip_syncs
from uniavgen.ingest.models.diarizer import EMBEDDED, Diarizer
from uniavgen.ingest.models.face_embedding import clip_face_embedding
from uniavgen.ingest.models.sync_models import SyncModels
from uniavgen.ingest.models.transcriber import Transcriber, whisper_model_path
from uniavgen.ingest.records import (
    AudioMeasures,
    ClipAudio,
    ClipFingerprints,
    CutMedia,
    Diarization,
    FacesSeen,
    Fingerprints,
    FrameTable,
    LocalCopy,
    MeasuredRows,
    Probe,
    Proposals,
    Shots,
    SourceRecord,
    SyncMeasures,
    Transcript,
    VideoHashes,
)
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

FULL_RATE = 48_000
"""Rate at which the bandwidth is looked for: what a source's sound holds above 24 kHz nobody hears."""


class Fetching(Step):
    """The source as a local file: itself, or a copy of a remote one in the run's cache."""

    gives: ClassVar[dict[str, type]] = {"fetch": LocalCopy}

    def __init__(self, config: IngestConfig, scratch: Path, corpus_root: Path) -> None:
        super().__init__(config, scratch, corpus_root)
        self._stage = DownloadCache(config.sources, scratch)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        path = self._stage.fetch(_entry(record))
        record.source_id = record.source_id or content_id(path)
        if read_tombstones(self.corpus_root).contains(record.source_id):
            raise UserError(FORGOTTEN_SAYS, where=record.uri, hint="leave it out", kind=FORGOTTEN)
        return {"fetch": LocalCopy(path)}

    def release(self, record: SourceRecord) -> None:
        self._stage.release(record.uri)

    def drop(self, record: SourceRecord) -> None:
        """The whole run is through with the source: a remote one's copy goes."""
        self._stage.drop(_entry(record))


class Probing(Step):
    """What the file is. Fails on what is no video."""

    gives: ClassVar[dict[str, type]] = {"probe": Probe}

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        return {"probe": probe_video(record.result(LocalCopy).path, self.config.limits)}


class Hearing(Step):
    """The sound track at 16 kHz as a file in the scratch folder; no samples where there is none."""

    gives: ClassVar[dict[str, type]] = {"sound": AudioFile}

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        probe = record.result(Probe)
        if not probe.has_audio:
            return {"sound": AudioFile("", 0)}
        path = self.scratch / f"{record.source_id}.s16"
        if path.is_file():
            return {"sound": AudioFile(str(path), path.stat().st_size // 2)}
        return {
            "sound": media.decode_audio(
                record.result(LocalCopy).path, probe.duration_s, path, self.config.limits
            )
        }

    def release(self, record: SourceRecord) -> None:
        kept = sum(facts.st_size for facts in file_statuses(self.scratch, "*.s16").values())
        if (
            kept > self.config.scratch_gb * 2**30
        ):  # the next stage is far behind: it decodes anew what it comes to
            self.drop(record)

    def drop(self, record: SourceRecord) -> None:
        """The whole run is through with the source."""
        (self.scratch / f"{record.source_id}.s16").unlink(missing_ok=True)


class Diarizing(Step):
    """Speakers' turns and voices."""

    gives: ClassVar[dict[str, type]] = {"diarize": Diarization}

    _diarizer: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        if config.diarization.model == EMBEDDED:
            resolve("ecapa", config.diarization.ecapa_folder or None)

    def load(self, wanted: tuple[str, ...]) -> None:
        self._diarizer = self._diarizer or Diarizer(self.config.diarization, self.config.device)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        return {"diarize": Diarization(*self._diarizer.diarize(record.result(AudioFile)))}


class Transcribing(Step):
    """Words, their times, their speakers."""

    gives: ClassVar[dict[str, type]] = {"transcribe": Transcript}

    _transcriber: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        whisper_model_path(config.transcription)

    def load(self, wanted: tuple[str, ...]) -> None:
        if self._transcriber is None:
            self._transcriber = Transcriber(
                self.config.transcription, self.config.device, self.config.stages.speech.threads
            )

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        sound, turns = record.result(AudioFile), record.result(Diarization).turns
        return {"transcribe": Transcript(*self._transcriber.transcribe(sound, turns))}


class Proposing(Step):
    """Which spans become clips. Fails on a file that holds much less than it declares."""

    gives: ClassVar[dict[str, type]] = {"propose": Proposals}

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        end_s = len(record.result(FrameTable).luma) / VIDEO_FPS
        check_complete(record, end_s, record.result(AudioFile).duration_s)
        words, shots = record.result(Transcript).words, record.result(Shots).spans
        return {"propose": Proposals(propose_clips(words, shots, end_s, self.config.clips))}


class Listening(Step):
    """How good the sound of each clip is. The bandwidth is the source's own, from a read at a rate that shows it."""

    gives: ClassVar[dict[str, type]] = {"listen": AudioMeasures}
    _meter: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        resolve("dnsmos", config.sound_quality.dnsmos_folder or None)

    def load(self, wanted: tuple[str, ...]) -> None:
        from uniavgen.ingest.measures.sound_quality import SoundMeter

        self._meter = self._meter or SoundMeter(self.config.sound_quality)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        sound, clips = record.result(AudioFile), record.result(Proposals).clips
        if not sound.samples:
            return {"listen": AudioMeasures([ClipAudio({}) for _ in clips])}
        seconds = min(self.config.sound_quality.bandwidth_seconds, sound.duration_s)
        whole = media.decode_audio_span(
            record.result(LocalCopy).path, 0.0, seconds, FULL_RATE, self.config.limits
        )
        bandwidth = {"bandwidth_hz": bandwidth_hz(whole, FULL_RATE)}
        found = []
        for clip in clips:
            pcm = sound.span(clip.start_s, clip.end_s)
            found.append(ClipAudio(self._meter.signals(pcm) | bandwidth | {"pitch_hz": pitch_hz(pcm)}))
        return {"listen": AudioMeasures(found)}


class Syncing(Step):
    """Which face speaks in each clip, and whether lips and sound are in step."""

    gives: ClassVar[dict[str, type]] = {"sync": SyncMeasures}
    _reader: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        for path in (config.sync.syncnet_weights, config.sync.light_asd_weights):
            if path and not Path(path).is_file():
                raise UserError(
                    "no weights here", where=path, hint="check ingest.sync.*_weights", kind="missing-weights"
                )

    def load(self, wanted: tuple[str, ...]) -> None:
        self._reader = self._reader or SyncModels(self.config.sync, self.config.device)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        return {"sync": clip_syncs(record, self._reader, self.config)}


class Fingerprinting(Step):
    """By what each clip is known again."""

    gives: ClassVar[dict[str, type]] = {"fingerprint": Fingerprints}

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        hashes, sound = record.result(VideoHashes).values, record.result(AudioFile)
        clips = [
            ClipFingerprints(
                video_hash(hashes, clip.start_s, clip.end_s),
                sound_hash(sound.span(*sound_span(clip.start_s, clip.end_s))),
                text_hash(" ".join(word.text for word in clip.words)),
                clip_face_embedding(record.result(FacesSeen).vectors, clip_face(record, index)),
            )
            for index, clip in enumerate(record.result(Proposals).clips)
        ]
        return {"fingerprint": Fingerprints(clips)}


class Measuring(Step):
    """The rows of the clips table, and what the source's own row takes from the steps."""

    gives: ClassVar[dict[str, type]] = {"measure": MeasuredRows}

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        rows = [clip_row(record, index, self.config) for index in range(len(record.result(Proposals).clips))]
        return {"measure": MeasuredRows(rows, source_columns(record))}


class Cutting(Step):
    """The clips' media files, at their place in the corpus. What was cut alike before is left as it stands."""

    gives: ClassVar[dict[str, type]] = {"cut": CutMedia}

    def load(self, wanted: tuple[str, ...]) -> None:
        self._media = ClipMedia(self.corpus_root, owner=self.scratch.name)

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        rows = record.result(MeasuredRows).clips
        framings = [self._framing(record, index) for index in range(len(rows))]
        recipes = {
            row["clip_id"]: self._recipe(row, chosen) for row, chosen in zip(rows, framings, strict=True)
        }
        files = ("mp4", "flac") if record.result(Probe).has_audio else ("mp4",)
        todo = self._media.begin(record.source_id, recipes, files)
        for index, (row, chosen) in enumerate(zip(rows, framings, strict=True)):
            if row["clip_id"] in todo:
                self._cut(record, row, chosen)
                self._media.done(record.source_id, row["clip_id"])
            self._media.write(row["clip_id"], "face.npz", face_track(record, index, chosen).to_bytes())
        return {"cut": CutMedia()}

    def _framing(self, record: SourceRecord, index: int) -> Framing:
        probe = record.result(Probe)
        return framing(probe.width, probe.height, clip_face(record, index).box, self.config.cut)

    def _recipe(self, row: dict[str, Any], framing: Framing) -> list[Any]:
        """All that the look and the sound of a clip depend on."""
        return [
            row["start_s"],
            row["end_s"],
            asdict(framing),
            self.config.cut.model_dump(),
            SPECS["cut"].version,
        ]

    def _cut(self, record: SourceRecord, row: dict[str, Any], framing: Framing) -> None:
        frames = round((row["end_s"] - row["start_s"]) * VIDEO_FPS)
        target = self._media.path(row["clip_id"], "mp4"), self._media.path(row["clip_id"], "flac")
        cut_clip(
            record.result(LocalCopy).path,
            record.result(Probe),
            row["start_s"],
            frames,
            framing,
            target,
            self.scratch,
            self.config.cut,
            self.config.limits,
        )


STEP_CLASSES: dict[str, tuple[type[Step], ...]] = {
    "prepare": (Fetching, Probing),
    "speech": (Hearing, Diarizing, Transcribing),
    "sight": (Watching, Proposing, Listening, Syncing, Fingerprinting, Measuring),
    "cut": (Cutting,),
}
"""Stage -> its steps, in order."""

STEP_OF: dict[type, str] = {
    kind: name for classes in STEP_CLASSES.values() for step in classes for name, kind in step.gives.items()
}
"""Class of a result -> the step that gives it."""


def check_complete(record: SourceRecord, seen_s: float, heard_s: float) -> None:
    """Raise UserError (truncated) where much less could be decoded than the file declares."""
    declared = record.result(Probe).duration_s
    if max(seen_s, heard_s) < declared - max(1.0, 0.05 * declared):
        raise UserError(
            f"the file declares {declared:.1f} s and holds {max(seen_s, heard_s):.1f} s",
            where=record.uri,
            hint="fetch it again",
            kind="truncated",
        )


def _entry(record: SourceRecord) -> Entry:
    return Entry(record.uri, record.stamp, record.bytes)
