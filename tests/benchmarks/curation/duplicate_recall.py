"""Recall and false matches of duplicate detection on re-encoded real videos.

    python tests/benchmarks/curation/duplicate_recall.py VIDEO... [--folder bench-copies]

Every video is cut into clips of 2 to 10 s and re-encoded in each way of `VARIANTS`. The clips of a variant
are cut as a separate run would cut them (up to 0.12 s away at another speed or start). For each variant, a
corpus of all originals and all clips of that variant gives the duplicates found by picture and audio, by
picture only and by audio only, and the number of matched pairs with different content. Existing files in the
folder are not encoded again.
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.similar_pairs import Pairs, audio_prints, find_pairs, video_prints
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures.fingerprint import sound_hash, sound_span, video_hash
from uniavgen.ingest.measures.hash import VideoHasher
from uniavgen.shards.timing import VIDEO_FPS

LENGTHS_S = (4.2, 2.6, 5.9, 3.3, 7.1, 9.6)
SIDE = 64
LATE_S, FASTER = 0.73, 1.1
QUICK = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
SOUND = ("-c:a", "aac", "-b:a", "48k")
VARIANTS: dict[str, tuple[str, ...]] = {
    "half the bitrate": (*QUICK, *SOUND),
    "starts later": ("-ss", str(LATE_S), *QUICK, "-crf", "26", *SOUND),
    "half the size": ("-vf", "scale=trunc(iw/4)*2:-2", *QUICK, "-crf", "28", "-r", "24", *SOUND),
    "a tenth cropped": ("-vf", "crop=trunc(iw*0.45)*2:trunc(ih*0.45)*2", *QUICK, "-crf", "23", *SOUND),
    "mirrored": ("-vf", "hflip", *QUICK, "-crf", "23", *SOUND),
    "black bars": ("-vf", "pad=iw:trunc(ih*0.6)*2:0:trunc(ih*0.1)", *QUICK, "-crf", "23", *SOUND),
    "brighter": ("-vf", "eq=brightness=0.08:contrast=1.15", *QUICK, "-crf", "23", *SOUND),
    "a tenth faster": (
        "-vf",
        f"setpts=PTS/{FASTER}",
        "-af",
        f"atempo={FASTER}",
        *QUICK,
        "-crf",
        "23",
        *SOUND,
    ),
}


@dataclass(frozen=True)
class Clip:
    """A clip: `content` identifies the original span, `variant` the re-encoding ("" for the original)."""

    content: tuple[str, float]
    variant: str
    start_s: float
    pictures: list[int]
    sounds: list[int]


def clips_of(path: Path, content: str, variant: str, seconds: float) -> list[Clip]:
    """The clips of one file, which contains `seconds` of the original `content`."""
    pictures, pcm = read(path)
    draw = np.random.default_rng(len(content) + len(variant))
    speed, late = (
        (FASTER if variant == "a tenth faster" else 1.0),
        (LATE_S if variant == "starts later" else 0.0),
    )
    clips, at, number = [], 0.0, len(content)
    while (length := min(LENGTHS_S[number % len(LENGTHS_S)], seconds - at)) >= 2:
        beside = draw.uniform(-0.12, 0.12, 2) if speed != 1 or late else np.zeros(2)
        start = max(0.0, at / speed - late + beside[0])
        end = min((at + length) / speed - late + beside[1], len(pictures) / 4)
        if end - start >= 1.5:
            low, high = (round(edge * 16000) for edge in sound_span(start, end))
            span = np.pad(pcm[low:high], (0, max(0, high - max(low, len(pcm))))) if len(pcm) else pcm
            clips.append(
                Clip((content, at), variant, start, video_hash(pictures, start, end), sound_hash(span) or [])
            )
        at, number = at + length + 0.15, number + 1
    return clips


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Video hashes and audio samples of a file (empty without audio)."""
    scale = f"fps={VIDEO_FPS}:start_time=0,scale={SIDE}:{SIDE}:flags=area"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    hasher = VideoHasher()
    for index, frame in enumerate(np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)):
        hasher.add_frame(index, frame)
    late = "aresample=async=1:first_pts=0"
    sound = ffmpeg(
        "-i",
        path,
        "-vn",
        "-map",
        "0:a?",
        "-af",
        late,
        "-ac",
        1,
        "-ar",
        16000,
        "-f",
        "s16le",
        "-",
        strict=False,
    )
    return hasher.hashes(), np.frombuffer(sound, np.int16)


def ffmpeg(*arguments: object, strict: bool = True) -> bytes:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=strict).stdout


def seconds_of(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return (container.duration or 0) / 1e6


def pairs_of(clips: list[Clip], picture: bool, sound: bool) -> Pairs:
    lists = (
        [clip.pictures if picture else [] for clip in clips],
        [clip.sounds if sound else [] for clip in clips],
    )
    video, heard = (
        (np.array([item for each in part for item in each], np.int64), np.cumsum([0, *map(len, part)]))
        for part in lists
    )
    starts = np.array([clip.start_s for clip in clips])
    nothing = np.zeros(len(clips), np.int64)
    return find_pairs(video_prints(*video, starts), audio_prints(*heard), nothing, DuplicateConfig())


def count_matches(clips: list[Clip], picture: bool, sound: bool) -> tuple[int, int]:
    """Number of clips paired with their original, and of pairs with different content."""
    pairs = pairs_of(clips, picture, sound)
    both = [
        (clips[a].content, clips[b].content) for a, b in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)
    ]
    right = sum(one == other for one, other in both)
    return right, len(both) - right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("bench-copies"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    seconds = {path: seconds_of(path) for path in options.videos}
    originals = [clip for path in options.videos for clip in clips_of(path, path.stem, "", seconds[path])]
    heads = ("clips", "found", "by picture", "by sound", "false")
    print(f"{'variant':>18}", *(f"{head:>11}" for head in heads))
    for variant, arguments in VARIANTS.items():
        copies = []
        for path in options.videos:
            copy = options.folder / f"{path.stem}-{variant.replace(' ', '-')}.mp4"
            rate = path.stat().st_size * 8 / seconds[path] / 2
            half = ("-b:v", str(round(max(60_000, rate)))) if variant == "half the bitrate" else ()
            if not copy.exists():
                ffmpeg("-i", path, *arguments, *half, copy)
            copies += clips_of(copy, path.stem, variant, seconds[path])
        there = {clip.content for clip in copies}
        clips = [*(clip for clip in originals if clip.content in there), *copies]
        judgements = [count_matches(clips, *by) for by in ((True, True), (True, False), (False, True))]
        false = max(wrong for _, wrong in judgements)
        print(
            f"{variant:>18} {len(copies):11}",
            *(f"{right:11}" for right, _ in judgements),
            f"{false:11}",
            flush=True,
        )


if __name__ == "__main__":
    main()
