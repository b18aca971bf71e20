"""What the report plays: a clip's picture and sound in one file, its waveform, and its face oval, small enough for a page.

In: a clip's media in the corpus. Out: an .mp4 with sound for browsers (the picture is copied, not encoded again), and
plain numbers for the page to draw.
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

if TYPE_CHECKING:
    import av

WAVE_BARS = 160
_AUDIO_BIT_RATE = 96_000
_POSTER_SIDE = 384


def preview(corpus: Corpus, clip_id: str, target: Path) -> dict[str, Any] | None:
    """Write `<clip_id>.mp4` into the folder `target` unless it is there, and return what the page needs to show it.

    `file` (name), `width`, `height`, `poster` (JPEG of the first picture as a data URL), `wave` (peaks 0..100, one per bar;
    empty without sound), `oval` (see `oval_data`).
    None where the clip has no picture or its media cannot be read: the page says so.
    """
    video, audio, face = (corpus.media_path(clip_id, extension) for extension in ("mp4", "flac", "face.npz"))
    path = target / f"{clip_id}.mp4"
    try:
        if not path.is_file():
            _mux(video, audio, path)
        width, height, poster = _first_picture(path)
        oval = oval_data(FaceTrack.from_bytes(face.read_bytes())) if face.is_file() else None
        wave = wave_bars(audio) if audio.is_file() else []
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        StopIteration,
    ):  # PyAV's and soundfile's errors are among these
        return None
    return {"file": path.name, "width": width, "height": height, "poster": poster, "wave": wave, "oval": oval}


def wave_bars(audio: Path, bars: int = WAVE_BARS) -> list[int]:
    """Peaks of a sound file, one per bar, in 0..100 of the loudest."""
    import numpy as np
    import soundfile

    sound = np.abs(soundfile.read(str(audio), dtype="float32", always_2d=True)[0].max(axis=1))
    if not len(sound):
        return []
    peaks = [float(part.max(initial=0.0)) for part in np.array_split(sound, bars)]
    loudest = max(*peaks, 1e-3)
    return [round(100 * peak / loudest) for peak in peaks]


def oval_data(track: FaceTrack) -> dict[str, Any]:
    """A face track for the page: `points` per frame, and `data`, base64 of little-endian uint16 [frames, points, 2].

    Fractions of the picture are scaled to 0..65534; a frame without a face is all 65535.
    """
    import numpy as np

    scaled = np.round(np.clip(track.oval, 0, 1) * 65534).astype("<u2")
    scaled[track.score <= 0] = 65535
    return {"points": int(track.oval.shape[1]), "data": base64.b64encode(scaled.tobytes()).decode()}


def _first_picture(path: Path) -> tuple[int, int, str]:
    import av

    with av.open(str(path), mode="r") as container:
        stream = container.streams.video[0]
        picture = next(container.decode(stream)).to_image()
    size = picture.size
    picture.thumbnail((_POSTER_SIDE, _POSTER_SIDE))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    return *size, "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _mux(video: Path, audio: Path, path: Path) -> None:
    """Picture as it is and sound as AAC, into one file by rename."""
    import av

    buffer = io.BytesIO()
    with av.open(str(video), mode="r") as picture, av.open(buffer, mode="w", format="mp4") as out:
        copy = out.add_stream_from_template(picture.streams.video[0])
        if audio.is_file():
            with av.open(str(audio), mode="r") as sound:
                _encode_sound(sound, out)
        for packet in picture.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(buffer.getvalue())
    os.replace(part, path)


def _encode_sound(sound: av.container.InputContainer, out: av.container.OutputContainer) -> None:
    import av

    stream = out.add_stream("aac", rate=sound.streams.audio[0].rate, layout="mono", bit_rate=_AUDIO_BIT_RATE)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate, frame_size=1024)
    for frame in [*sound.decode(audio=0), None]:
        for part in resampler.resample(frame):
            out.mux(stream.encode(part))
    out.mux(stream.encode(None))


def words_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A clip's words for the page: `text`, `start`, `end` in seconds from its start."""
    words = row.get("words") or []
    return [{"text": w["text"], "start": round(w["start_s"], 3), "end": round(w["end_s"], 3)} for w in words]
