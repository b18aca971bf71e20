"""Previews of clips for the report page: an .mp4 with audio for browsers (the video stream is copied, not
re-encoded), a waveform, and the face oval per frame.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.text import word_gaps

if TYPE_CHECKING:
    import av

WAVEFORM_BARS = 160
_AUDIO_BIT_RATE = 96_000
_POSTER_SIDE = 384


def make_preview(corpus: Corpus, clip_id: str, folder: Path) -> dict[str, Any] | None:
    """Write `<clip_id>.mp4` into `folder` unless it exists, and return the data that the report page shows.

    `file` (name), `width`, `height`, `poster` (JPEG of the first frame as a data URL), `wave` (peaks 0..100,
    one per bar; empty without audio), `oval` (see `pack_oval`). None if the clip has no video or its media
    cannot be read.
    """
    video, audio, face = (corpus.media_path(clip_id, extension) for extension in ("mp4", "flac", "face.npz"))
    path = folder / f"{clip_id}.mp4"
    try:
        if not path.is_file():
            _mux(video, audio, path)
        width, height, poster = _first_frame(path)
        oval = pack_oval(FaceTrack.from_bytes(face.read_bytes())) if face.is_file() else None
        wave = compute_waveform(audio) if audio.is_file() else []
    except (OSError, ValueError, KeyError, RuntimeError, StopIteration):  # PyAV's and soundfile's errors too
        return None
    return {"file": path.name, "width": width, "height": height, "poster": poster, "wave": wave, "oval": oval}


def compute_waveform(audio: Path, bars: int = WAVEFORM_BARS) -> list[int]:
    """Peaks of an audio file, one per bar, in percent of the highest."""
    import numpy as np
    import soundfile

    samples = np.abs(soundfile.read(str(audio), dtype="float32", always_2d=True)[0].max(axis=1))
    if not len(samples):
        return []
    peaks = [float(part.max(initial=0.0)) for part in np.array_split(samples, bars)]
    highest = max(*peaks, 1e-3)
    return [round(100 * peak / highest) for peak in peaks]


def pack_oval(track: FaceTrack) -> dict[str, Any]:
    """A face track: `points` per frame, and `data`, base64 of little-endian uint16 [frames, points, 2].

    Positions as shares of the frame are scaled to 0..65534; a frame without a face is all 65535.
    """
    import numpy as np

    scaled = np.round(np.clip(track.oval, 0, 1) * 65534).astype("<u2")
    scaled[track.score <= 0] = 65535
    return {"points": int(track.oval.shape[1]), "data": base64.b64encode(scaled.tobytes()).decode()}


def _first_frame(path: Path) -> tuple[int, int, str]:
    """Width, height, and a small JPEG as a data URL."""
    import av

    with av.open(str(path), mode="r") as container:
        stream = container.streams.video[0]
        image = next(container.decode(stream)).to_image()
    size = image.size
    image.thumbnail((_POSTER_SIDE, _POSTER_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=75)
    return *size, "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _mux(video: Path, audio: Path, path: Path) -> None:
    """Write the copied video stream and the audio as AAC into one file, atomically."""
    import av

    buffer = io.BytesIO()
    with av.open(str(video), mode="r") as source, av.open(buffer, mode="w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        if audio.is_file():
            with av.open(str(audio), mode="r") as container:
                _encode_audio(container, out)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(buffer.getvalue())
    os.replace(part, path)


def _encode_audio(audio: av.container.InputContainer, out: av.container.OutputContainer) -> None:
    import av

    stream = out.add_stream("aac", rate=audio.streams.audio[0].rate, layout="mono", bit_rate=_AUDIO_BIT_RATE)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate, frame_size=1024)
    for frame in [*audio.decode(audio=0), None]:
        for part in resampler.resample(frame):
            out.mux(stream.encode(part))
    out.mux(stream.encode(None))


def timed_words(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A clip's words: `text`, `gap` (white space before it in the transcript), `start`, `end` in seconds from
    the clip's start.
    """
    words = row.get("words") or []
    gaps = word_gaps(row.get("transcript") or "", [word["text"] for word in words])
    return [
        {"text": w["text"], "gap": gap, "start": round(w["start_s"], 3), "end": round(w["end_s"], 3)}
        for w, gap in zip(words, gaps, strict=True)
    ]
