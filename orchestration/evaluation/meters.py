"""Meters: each loads its networks once and measures a video in memory. They use ingest's measuring steps.

A meter gives each of its metrics as (value, weight), or leaves it out where the video cannot be measured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from uniavgen.orchestration.evaluation import controls
from uniavgen.orchestration.evaluation.distributions import mel_statistics
from uniavgen.orchestration.evaluation.pairing import clipped_offset, cosine
from uniavgen.orchestration.evaluation.picture import (
    dis_flows,
    fastest_motion,
    subject_consistency,
    thinned,
)
from uniavgen.orchestration.evaluation.words import word_errors
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    from uniavgen.ingest.config import IngestConfig
    from uniavgen.ingest.models.face_embedding import FaceEncoder
    from uniavgen.ingest.records import FacesSeen
    from uniavgen.orchestration.evaluation.videos import Media

IDENTITY_EVERY = 8
"""Frames between two face embeddings. Heuristic: half a second."""
QUALITY_EVERY = 8
"""Frames between two whose quality is measured."""


@dataclass(frozen=True)
class Measured:
    """What a meter found: values by metric with their weights, vectors for metrics of sets, and notes."""

    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    vectors: Mapping[str, list[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Meter(Protocol):
    """A group of metrics of the same networks and the same controls.

    `version` is raised when answers change: results of another version are measured again. `key` names the
    settings and weights that answers depend on.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def control(self) -> controls.Control: ...

    @property
    def key(self) -> str: ...

    def measure(self, clip: Media) -> Measured: ...


class WordMeter:
    """WER of the transcript by ingest's Whisper against the given text."""

    name, version, metrics, control = "words", "1", ("WER-base",), controls.SOUND

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._transcriber: Any = None

    @property
    def key(self) -> str:
        return self._config.transcription.model_dump_json()

    def measure(self, clip: Media) -> Measured:
        if not clip.text:
            return Measured()
        transcript = self.transcribe(clip.pcm)
        errors = word_errors(clip.text, transcript)
        if errors is None:
            return Measured()
        counts = (
            f"{errors.substitutions} substituted, {errors.deletions} deleted, {errors.insertions} inserted"
        )
        notes = {"transcript": transcript, "errors": f"{counts} of {errors.words}"}
        return Measured({"WER-base": (errors.rate, float(errors.words))}, notes=notes)

    def transcribe(self, pcm: np.ndarray) -> str:
        """What is said in int16 [n] at 16 kHz."""
        from uniavgen.ingest.io.audio import AudioFile
        from uniavgen.ingest.models.transcriber import Transcriber
        from uniavgen.ingest.records import AUDIO_RATE, Span

        if self._transcriber is None:
            with contextlib.redirect_stdout(sys.stderr):  # whisperx logs to stdout
                self._transcriber = Transcriber(self._config.transcription, self._config.device)
            logging.getLogger("whisperx").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound.raw"
            pcm.tofile(path)
            audio = AudioFile(str(path), len(pcm))
            turns = [Span(0.0, len(pcm) / AUDIO_RATE, "voice")]
            passages, _ = self._transcriber.transcribe(audio, turns)
        return " ".join(passage.text for passage in passages)


class SpeechQualityMeter:
    """DNSMOS P.835 by ingest, and log-mel statistics for FD-mel."""

    name, version, control = "speech-quality", "1", controls.NOISE
    metrics = ("DNSMOS-OVRL", "DNSMOS-BAK", "FD-mel")

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._meter: Any = None

    @property
    def key(self) -> str:
        return "dnsmos"

    def measure(self, clip: Media) -> Measured:
        from uniavgen.ingest.measures.listen import AudioMeter

        self._meter = self._meter or AudioMeter(self._config.sound_quality)
        signals = self._meter.signals(clip.pcm)
        names = {"OVRL": "overall", "BAK": "background"}
        values = {f"DNSMOS-{short}": signals.get(f"dnsmos_{long}") for short, long in names.items()}
        statistics = mel_statistics(clip.pcm)
        return Measured(
            {name: (float(value), 1.0) for name, value in values.items() if value is not None},
            {} if statistics is None else {"FD-mel": statistics.tolist()},
        )


class VoiceSource:
    """Voice embeddings by ingest's ECAPA, loaded once for the meters that need them."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._encoder: Any = None

    @property
    def key(self) -> str:
        return self._config.diarization.model_dump_json()

    def embed(self, sounds: list[np.ndarray]) -> np.ndarray:
        """Embeddings [n, 192] of the voiced parts of int16 sounds; NaN below one second of voice."""
        from uniavgen.ingest.models.speaker_embedding import VoiceEncoder

        self._encoder = self._encoder or VoiceEncoder(self._config.diarization, self._config.device)
        loud = [without_silence(pcm) for pcm in sounds]
        embedded = self._encoder.encode([pcm.astype(np.float32) / 32768 for pcm in loud])
        embedded[[len(pcm) < 16_000 for pcm in loud]] = np.nan
        return np.asarray(embedded)


class VoiceMeter:
    """TC-ref: similarity to the reference voice."""

    name, version, metrics, control = "voice", "1", ("TC-ref",), controls.SOUND

    def __init__(self, source: VoiceSource) -> None:
        self.source = source

    @property
    def key(self) -> str:
        return self.source.key

    def measure(self, clip: Media) -> Measured:
        reference = [] if clip.voice is None else [clip.voice]
        embedded = self.source.embed([clip.pcm, *reference])
        if not np.isfinite(embedded[0]).all():
            return Measured()
        similar = {}
        if len(embedded) > 1 and np.isfinite(embedded[1]).all():
            similar = {"TC-ref": (float(cosine(*embedded)), 1.0)}
        return Measured(similar, {"voice": embedded[0].tolist()})


class VoiceStabilityMeter(VoiceMeter):
    """TC-self: similarity of the voice in the first and in the second half."""

    name, metrics, control = "voice-stability", ("TC-self",), controls.SPLICE

    def measure(self, clip: Media) -> Measured:
        middle = len(clip.pcm) // 2
        first, second = self.source.embed([clip.pcm[:middle], clip.pcm[middle:]])
        if not np.isfinite([first, second]).all():
            return Measured()
        return Measured({"TC-self": (float(cosine(first, second)), 1.0)})


class FaceSource:
    """Faces of videos by ingest's face reader, with embeddings; shared by the meters that need them.

    Faces are remembered while their frames are in memory, so that meters and controls of the same frames read
    them once.
    """

    def __init__(self, config: IngestConfig) -> None:
        self.config = config
        self._reader: Any = None
        self._encoder: Any = None
        self._known: list[tuple[weakref.ref[np.ndarray], FacesSeen]] = []

    @property
    def key(self) -> str:
        return self.config.faces.model_dump_json() + self.config.sync.model_dump_json()

    def seen(self, frames: np.ndarray) -> FacesSeen:
        """Faces of frames uint8 [F, H, W, 3], with an embedding of each in every eighth frame."""
        from uniavgen.ingest.models.face_embedding import face_encoder
        from uniavgen.ingest.models.face_reader import FaceCollector, FaceReader

        self._known = [entry for entry in self._known if entry[0]() is not None]
        for known, faces in self._known:
            if known() is frames:
                return faces
        if self._reader is None:
            with without_native_log():
                self._reader = FaceReader(self.config.faces)
                self._reader.read(np.zeros((64, 64, 3), np.uint8))
            encoder = face_encoder(self.config.faces)
            self._encoder = _EveryEighth(encoder) if encoder else None
        collector = FaceCollector(self._reader, self.config.faces, lambda _: True, self._encoder)
        for index, frame in enumerate(frames):
            collector.add_frame(index, frame)
        faces = collector.result()
        self._known.append((weakref.ref(frames), faces))
        return faces

    def close(self) -> None:
        """End the reader's threads, which would keep the process alive."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class FaceMeter:
    """Base of the meters that need faces."""

    version = "1"

    def __init__(self, source: FaceSource) -> None:
        self.source = source

    @property
    def key(self) -> str:
        return self.source.key


class SyncMeter(FaceMeter):
    """Lip sync by ingest: lip opening against loudness, without a network; and SyncNet if it is named."""

    name, control = "lip-sync", controls.SOUND

    def __init__(self, source: FaceSource, syncnet: str = "") -> None:
        super().__init__(source)
        config = source.config
        self._syncnet_weights = syncnet
        self._syncnet: Any = None
        named = ("LSE-C", "LSE-D") if syncnet else ()
        self.metrics: tuple[str, ...] = ("sync-confidence", "sync-offset", *named)
        if syncnet:
            from uniavgen.ingest.models.syncnet import SyncNet

            network = config.sync.model_copy(update={"model": "syncnet", "syncnet_weights": syncnet})
            self._syncnet = SyncNet(network, config.device)

    @property
    def key(self) -> str:
        return super().key + self._syncnet_weights

    def measure(self, clip: Media) -> Measured:
        from uniavgen.ingest.measures.clip_parts import main_face
        from uniavgen.ingest.measures.sync import lip_gaps
        from uniavgen.ingest.models.lip_sync import lip_sync
        from uniavgen.ingest.records import AUDIO_RATE

        main = main_face(self.source.seen(clip.frames).faces)
        if not len(main.frame):
            return Measured()
        config = self.source.config.sync
        margin = config.max_shift_ms * AUDIO_RATE // 1000
        samples = round(len(clip.frames) * AUDIO_RATE / VIDEO_FPS)
        sound = np.pad(clip.pcm[:samples], (0, max(0, samples - len(clip.pcm))))
        pcm = np.pad(sound, (margin, margin))
        (gap,) = lip_gaps(main, 0, len(clip.frames)).values()
        found = lip_sync(gap, pcm, config)
        values: dict[str, tuple[float, float]] = {}
        if found.confidence is not None and found.offset_ms is not None:
            values["sync-confidence"] = (found.confidence, 1.0)
            values["sync-offset"] = (clipped_offset(found.offset_ms), 1.0)
        return Measured(values | self._by_syncnet(clip, main, pcm))

    def _by_syncnet(self, clip: Media, main: Any, pcm: np.ndarray) -> dict[str, tuple[float, float]]:
        """LSE-C and LSE-D. SyncNet reads 25 fps: 16 fps frames are repeated, in real clips too."""
        if self._syncnet is None:
            return {}
        from uniavgen.ingest.models.published_networks import NETWORK_FPS, interpolate_boxes

        times = np.arange(round(len(clip.frames) * NETWORK_FPS / VIDEO_FPS)) / NETWORK_FPS
        at = np.minimum((times * VIDEO_FPS).astype(int), len(clip.frames) - 1)
        boxes = interpolate_boxes(main.frame, main.box, VIDEO_FPS, times)
        scores = self._syncnet.lip_sync(clip.frames[at], boxes, pcm).scores
        names = {"LSE-C": "syncnet_confidence", "LSE-D": "syncnet_distance"}
        return {name: (scores[score], 1.0) for name, score in names.items() if score in scores}


class FaceFoundMeter(FaceMeter):
    """Share of the frames in which the main face is found."""

    name, metrics, control = "face-found", ("face-found",), controls.BLANK

    def measure(self, clip: Media) -> Measured:
        from uniavgen.ingest.measures.clip_parts import main_face

        found = np.unique(main_face(self.source.seen(clip.frames).faces).frame)
        return Measured({"face-found": (len(found) / len(clip.frames), 1.0)})


class IdentityMeter(FaceMeter):
    """The face's similarity to the reference portrait, mean over every eighth frame."""

    name, metrics, control = "identity", ("ID-dlib",), controls.FACE

    def measure(self, clip: Media) -> Measured:
        seen = self.source.seen(clip.frames).vectors
        if seen is None or not len(seen.vector):
            return Measured()
        vectors = {"face": seen.vector.mean(axis=0).tolist()}
        reference = None if clip.image is None else self.source.seen(clip.image[None]).vectors
        if reference is None or not len(reference.vector):
            return Measured(vectors=vectors)
        similarity = float(cosine(seen.vector, reference.vector[0]).mean())
        return Measured({"ID-dlib": (similarity, 1.0)}, vectors)


class FaceConsistencyMeter(FaceMeter):
    """SC-dlib: VBench's subject consistency with face embeddings every half second instead of DINO."""

    name, metrics, control = "face-consistency", ("SC-dlib",), controls.FACE_SPLICE

    def measure(self, clip: Media) -> Measured:
        vectors = self.source.seen(clip.frames).vectors
        if vectors is None:
            return Measured()
        _, first = np.unique(vectors.frame, return_index=True)  # the largest face of each frame
        if len(first) < 2:
            return Measured()
        consistency = subject_consistency(vectors.vector[first])
        return Measured({"SC-dlib": (float(consistency.mean()), float(len(consistency)))})


class MotionMeter:
    """The motion behind VBench's dynamic degree, with OpenCV's DIS flow instead of RAFT."""

    name, version, metrics, control = "motion", "1", ("motion-dis",), controls.STILL
    key = "dis"

    def measure(self, clip: Media) -> Measured:
        frames = clip.frames[thinned(len(clip.frames), VIDEO_FPS)]
        if len(frames) < 2:
            return Measured()
        motions = [fastest_motion(flow) for flow in dis_flows(frames)]
        height, width = frames.shape[1:3]
        speed = float(np.mean(motions)) * 256 / min(height, width)
        return Measured({"motion-dis": (speed, 1.0)})


class ImageQualityMeter:
    """IQ-brisque: mean quality of every eighth frame by BRISQUE."""

    name, version, metrics, control = "image-quality", "1", ("IQ-brisque",), controls.BLUR
    key = "brisque"
    _brisque: Any = None

    def measure(self, clip: Media) -> Measured:
        from uniavgen.orchestration.evaluation.picture import Brisque

        self._brisque = self._brisque or Brisque()
        qualities = [self._brisque.quality(frame) for frame in clip.frames[::QUALITY_EVERY]]
        return Measured({"IQ-brisque": (float(np.mean(qualities)), 1.0)})


@dataclass
class _EveryEighth:
    """A face encoder that is run on every eighth frame."""

    encoder: FaceEncoder
    every: int = IDENTITY_EVERY

    def encode(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        return self.encoder.encode(frame, points)


@contextlib.contextmanager
def without_native_log() -> Iterator[None]:
    """Hide what the block writes to file descriptor 2: MediaPipe's log cannot be turned off."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def without_silence(pcm: np.ndarray) -> np.ndarray:
    """The 20 ms cells of int16 [n] at 16 kHz that are at most 40 dB below the loudest."""
    cells = pcm[: len(pcm) // 320 * 320].reshape(-1, 320)
    if not len(cells):
        return pcm[:0]
    power = np.square(cells.astype(np.float64)).mean(axis=1)
    return cells[power > power.max() * 1e-4].ravel()
