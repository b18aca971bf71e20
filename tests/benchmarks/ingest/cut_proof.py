"""Cost of cutting clips and of comparing them with the analysis, and how far right and wrong clips lie apart.

    python tests/benchmarks/ingest/cut_proof.py VIDEOS... [--corpus DIR]

Clips of 5 s are cut from every video and compared with the analysed audio and frames: at their own time
(right), at other times of the same video, and at their time in another video (wrong). Prints core-seconds per
second of clip, the worst figures of the right clips, and how many wrong ones are caught. With --corpus, the
cost is also printed as a share of the working time of all steps of that corpus.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniavgen.ingest.config import CutConfig, LimitConfig
from uniavgen.ingest.io.clip_encoding import ClipEncode, encode_clips, shared_passes
from uniavgen.ingest.io.clip_proof import (
    SEARCH_S,
    ClipPictures,
    PictureProof,
    SoundProof,
    clip_pictures,
    clip_sound,
    compare_pictures,
    compare_sound,
    resampled,
)
from uniavgen.ingest.io.media import decode_audio, decode_frames
from uniavgen.ingest.io.probe_client import probe_video, repair_video
from uniavgen.ingest.measures.cut import choose_framing
from uniavgen.ingest.measures.picture import PictureCollector
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.timing import VIDEO_FPS

LIMITS, CUT = LimitConfig(), CutConfig()
CLIP_S, PERIOD_S, LONGEST_S = 5.0, 5.5, 120.0
SHIFTS_S = (-3.0, -1.0, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1.0, 3.0)


@dataclass
class Clip:
    """A cut clip of video number `video`: its pictures and its sound, None without audio."""

    video: int
    start_s: float
    pictures: ClipPictures
    sound: np.ndarray | None


@dataclass
class Video:
    """What the analysis decoded: cells of all frames, and audio from 1 s before the start on."""

    name: str
    cells: np.ndarray
    pcm: np.ndarray | None


class Costs:
    """Core-seconds of the cuts and of the comparisons."""

    cut = proof = video_s = 0.0


def measured(path: Path, number: int, work: Path, costs: Costs) -> tuple[Video, list[Clip]]:
    """Analyse a video, cut clips of it, and read them."""
    playable, probe = str(path), probe_video(str(path), LIMITS)
    if probe.repairs:
        playable = str(work / "repaired.mkv")
        probe = repair_video(str(path), probe, Path(playable), LIMITS)
    collector = PictureCollector()
    for index, frame in enumerate(decode_frames(playable, probe, 64, 1, None, LIMITS)):
        collector.add_frame(index, frame)
    cells = collector.result().cells
    assert cells is not None
    audio = decode_audio(playable, probe, work / "a.s16", LIMITS) if probe.has_audio else None
    length_s = min(LONGEST_S, len(cells) / VIDEO_FPS)
    framing = choose_framing(probe.width, probe.height, np.zeros((0, 4)), CUT)
    starts = np.round(np.arange(0.3, length_s - CLIP_S, PERIOD_S) * VIDEO_FPS) / VIDEO_FPS
    wanted = [
        ClipEncode(float(start), round(CLIP_S * VIDEO_FPS), framing, work / f"{n}.mp4", work / f"{n}.flac")
        for n, start in enumerate(starts)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for together in shared_passes(wanted):
        encode_clips(playable, probe, together, CUT, LIMITS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    costs.cut += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    costs.video_s += len(wanted) * CLIP_S
    pcm = None if audio is None else audio.span(-SEARCH_S, audio.duration_s + SEARCH_S)
    video, clips = Video(path.name, cells, pcm), []
    started = time.process_time()
    for clip in wanted:
        sound = clip_sound(clip.flac) if pcm is not None else None
        clips.append(Clip(number, clip.start_s, clip_pictures(clip.mp4, framing.crop), sound))
        compare(clips[-1], video, clip.start_s)
    costs.proof += time.process_time() - started
    return video, clips


def compare(clip: Clip, video: Video, start_s: float) -> tuple[PictureProof, SoundProof | None]:
    """The clip against a video from `start_s` on."""
    pictures = compare_pictures(clip.pictures, video.cells, round(start_s * VIDEO_FPS))
    if clip.sound is None or video.pcm is None:
        return pictures, None
    first = round(start_s * AUDIO_RATE)
    pcm = video.pcm[first : first + round((CLIP_S + 2 * SEARCH_S) * AUDIO_RATE)]
    pcm = np.pad(pcm, (0, round((CLIP_S + 2 * SEARCH_S) * AUDIO_RATE) - len(pcm)))
    return pictures, compare_sound(clip.sound, resampled(pcm.astype(np.float32) / 32768, AUDIO_RATE))


def wrong(clips: list[Clip], videos: list[Video]) -> Iterator[tuple[str, PictureProof, SoundProof | None]]:
    """Every clip at other times of its video, and at its own time in the next video."""
    for clip in clips:
        for shift_s in SHIFTS_S:
            start_s, video = clip.start_s + shift_s, videos[clip.video]
            if 0 <= start_s <= len(video.cells) / VIDEO_FPS - CLIP_S:
                yield f"{shift_s:+.3f} s", *compare(clip, video, start_s)
        other = videos[(clip.video + 1) % len(videos)]
        if clip.start_s <= len(other.cells) / VIDEO_FPS - CLIP_S:
            yield "other video", *compare(clip, other, clip.start_s)


def show(clips: list[Clip], videos: list[Video]) -> None:
    right = [compare(clip, videos[clip.video], clip.start_s) for clip in clips]
    alarms = [
        f"{videos[clip.video].name} {clip.start_s}: {pictures.fault} {sound.fault if sound else ''}"
        for clip, (pictures, sound) in zip(clips, right, strict=True)
        if pictures.fault or (sound and sound.fault)
    ]
    print(f"{len(clips)} right clips, {len(alarms)} false alarms", *alarms, sep="\n  ")
    sounds = [sound for _, sound in right if sound and sound.correlation is not None]
    motions = [pictures.motion_error for pictures, _ in right if pictures.motion_error is not None]
    print(
        f"right: first and last frame {max(max(p.first, p.last) for p, _ in right):.2f} levels, "
        f"movement {max(motions):.2f}, lag {max(abs(s.lag_ms) for s in sounds):.2f} ms, "
        f"correlation {min(s.correlation or 0 for s in sounds):.3f}, "
        f"worst half second {min(s.worst_correlation or 0 for s in sounds):.3f}, "
        f"level {max(abs(s.level_db) for s in sounds):.2f} dB (each the worst)"
    )
    by_kind: dict[str, list[tuple[PictureProof, SoundProof | None]]] = {}
    for kind, pictures, sound in wrong(clips, videos):
        by_kind.setdefault(kind, []).append((pictures, sound))
    for kind, pairs in by_kind.items():
        moved = [p.motion_error for p, _ in pairs if p.motion_error is not None]
        heard = [s for _, s in pairs if s and s.correlation is not None]
        caught = sum(bool(p.fault or (s and s.fault)) for p, s in pairs)
        print(
            f"{kind:>12}: {caught} of {len(pairs)} caught; by sound {sum(bool(s.fault) for s in heard)} of "
            f"{len(heard)}, by pictures {sum(bool(p.fault) for p, _ in pairs)} of {len(pairs)}; movement "
            f"{min(moved):.2f} to {max(moved):.2f}, median {np.median(moved):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--corpus", type=Path)
    arguments = parser.parse_args()
    costs, videos, clips = Costs(), [], []
    with tempfile.TemporaryDirectory() as folder:
        warm_up = np.zeros(AUDIO_RATE, np.float32)
        compare_sound(resampled(warm_up, AUDIO_RATE), np.zeros(3 * AUDIO_RATE // 2, np.float32))
        for path in arguments.videos:
            video, own = measured(path, len(videos), Path(folder), costs)
            videos.append(video)
            clips += own
    show(clips, videos)
    cut, proof = costs.cut / costs.video_s, costs.proof / costs.video_s
    print(f"core-seconds per second of clip: cut {cut:.4f}, comparison {proof:.4f}")
    if arguments.corpus:
        rows = Corpus.open(arguments.corpus).read("sources", ["duration_s", "step_seconds"]).to_pylist()
        work = sum(seconds for row in rows for _, seconds in row["step_seconds"])
        ingest = work / sum(row["duration_s"] for row in rows)
        print(f"ingest of that corpus: {ingest:.3f} s per second, of which {100 * proof / ingest:.1f} %")


if __name__ == "__main__":
    main()
