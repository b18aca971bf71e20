"""The videos that are evaluated, and how one is read into memory."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen.shards.errors import UserError
from uniavgen.shards.text_files import read_text

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.ingest.config import IngestConfig

LIST_NAME = "videos.csv"
FILE_COLUMNS = ("video", "voice", "image", "truth")
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v")


@dataclass(frozen=True)
class Item:
    """One generated or real video with what it was generated from.

    `audio` is a separate audio file, "" if the video has its own. `text` is what should be spoken; `voice`
    and `image` are files with the reference voice and the reference portrait (an image or a video); `truth`
    is the real video. `conditions` are values that scores are sliced by.
    """

    name: str
    video: str
    audio: str = ""
    text: str = ""
    voice: str = ""
    image: str = ""
    truth: str = ""
    conditions: Mapping[str, str | float] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of the content of every file and of the text."""
        digest = hashlib.sha256(self.text.encode())
        for path in (self.video, self.audio, self.voice, self.image):
            digest.update(b"|")
            if path:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:20]


@dataclass(frozen=True)
class Media:
    """A video in memory: `frames` uint8 [F, H, W, 3] RGB at 16 fps, `pcm` int16 [n] at 16 kHz.

    `voice` int16 [m] at 16 kHz and `image` uint8 [H, W, 3] are the references, None without.
    """

    frames: np.ndarray
    pcm: np.ndarray
    text: str = ""
    voice: np.ndarray | None = None
    image: np.ndarray | None = None


def list_videos(folder: Path) -> list[Item]:
    """Videos of a folder: those of its `videos.csv`, else every video file, by name.

    Raises UserError for a missing or empty folder and for a wrong list, with the line.
    """
    if not folder.is_dir():
        raise UserError(
            "no folder of videos here", where=folder, hint="name the folder of the generated videos"
        )
    if (folder / LIST_NAME).is_file():
        return read_list(folder / LIST_NAME)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(
            "the folder has no videos", where=folder, hint=f"endings: {', '.join(SUFFIXES)}, or a {LIST_NAME}"
        )
    return [Item(path.stem, str(path)) for path in paths]


def read_list(path: Path) -> list[Item]:
    """Videos of a CSV file. Columns `video`, `text`, `voice`, `image`, `truth`; any other is a condition.

    Files are relative to the list. Raises UserError that names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, "the list of videos"), newline=""))
    if "video" not in (reader.fieldnames or []):
        raise UserError(
            "the list has no column `video`", where=path, hint="name the columns in its first line"
        )
    items: dict[str, Item] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise UserError(
                "the line has another number of values than the first", where=where, hint="quote commas"
            )
        if not row["video"]:
            raise UserError("the line names no video", where=where, hint="fill the column `video`")
        files = {name: _file(path.parent, row.get(name) or "", where) for name in FILE_COLUMNS}
        name = row.get("name") or Path(row["video"]).stem
        if name in items:
            raise UserError(f"two lines are named {name}", where=where, hint="add a column `name`")
        conditions = {
            key: _number(value)
            for key, value in row.items()
            if key not in (*FILE_COLUMNS, "text", "name") and value
        }
        items[name] = Item(name, text=row.get("text") or "", conditions=conditions, **files)
    if not items:
        raise UserError("the list names no video", where=path, hint="one video in each line")
    return list(items.values())


def read_media(item: Item, config: IngestConfig, side: int, max_seconds: float) -> Media:
    """Decode a video and its references. Raises UserError: no sound, no picture, too long, not a video."""
    import numpy as np

    from uniavgen.ingest.io import media
    from uniavgen.ingest.io.probe_client import probe_video

    probe = probe_video(item.video, config.limits)
    if probe.duration_s > max_seconds:
        raise UserError(
            f"{probe.duration_s:.1f} s long, evaluation reads at most {max_seconds:g} s",
            where=item.video,
            hint="cut it, or raise evaluate.max_seconds",
            kind="too-long",
        )
    frames = np.stack(list(media.decode_frames(item.video, probe, side, 1, None, config.limits)))
    if not item.audio and not probe.has_audio:
        raise UserError(
            "the video has no sound", where=item.video, hint="give a video with sound", kind="no-audio"
        )
    pcm = read_sound(item.audio or item.video, config)
    return Media(
        frames,
        pcm,
        item.text,
        read_sound(item.voice, config) if item.voice else None,
        read_portrait(item.image, config, side) if item.image else None,
    )


def read_sound(path: str, config: IngestConfig) -> np.ndarray:
    """The sound of an audio or video file: int16 [n] at 16 kHz mono. Raises UserError if there is none."""
    import numpy as np

    from uniavgen.ingest.io import media
    from uniavgen.ingest.io.probe_client import probe_video
    from uniavgen.ingest.records import AUDIO_RATE

    if Path(path).suffix.lower() in (".wav", ".flac", ".ogg"):
        import soundfile
        from scipy.signal import resample_poly

        try:
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError("the sound cannot be read", where=path, hint="give a WAV or FLAC file") from error
        mono = audio.mean(axis=1)
        if rate != AUDIO_RATE:
            mono = resample_poly(mono, AUDIO_RATE, rate)
        return np.clip(np.round(mono * 32768), -32768, 32767).astype(np.int16)
    probe = probe_video(path, config.limits)
    if not probe.has_audio:
        raise UserError("the file has no sound", where=path, hint="give a file with sound", kind="no-audio")
    return media.decode_audio_span(path, probe, 0.0, probe.duration_s, AUDIO_RATE, config.limits)


def read_portrait(path: str, config: IngestConfig, side: int) -> np.ndarray:
    """A reference portrait: an image file, or the first frame of a video. uint8 [H, W, 3]."""
    import numpy as np

    if Path(path).suffix.lower() in SUFFIXES:
        from uniavgen.ingest.io import media
        from uniavgen.ingest.io.probe_client import probe_video

        probe = probe_video(path, config.limits)
        return next(iter(media.decode_frames(path, probe, side, 1, None, config.limits)))
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.thumbnail((side, side))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError("the portrait cannot be read", where=path, hint="give a PNG or JPEG file") from error


def with_conditions(item: Item, conditions: Mapping[str, str | float]) -> Item:
    """The item with more conditions; its own come first."""
    return replace(item, conditions={**conditions, **item.conditions})


def _file(folder: Path, name: str, where: str) -> str:
    if not name:
        return ""
    path = folder / name
    if not path.is_file():
        raise UserError(f"there is no file {name}", where=where, hint="paths are relative to the list")
    return str(path)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
