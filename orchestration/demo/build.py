"""Build the demo corpus: every video of the script, good and bad, and the truth about them in truth.json.

A finished corpus is reused, an interrupted build continues: a video is done when its truth is in `.parts/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.orchestration.demo import face, speech
from uniavgen.orchestration.demo.script import SENTENCES, SOUND_LATE_MS, VIDEO_SPECS, VideoSpec
from uniavgen.orchestration.demo.truth import (
    FACE_RATE_HZ,
    KEPT,
    TRUTH_NAME,
    DemoTruth,
    SourceTruth,
    TurnTruth,
    WordTruth,
    source_from_json,
)
from uniavgen.orchestration.output.video_file import write_video
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import resolve

if TYPE_CHECKING:
    import numpy as np

PARTS = ".parts"

_VIDEO_OPTIONS: dict[str, dict[str, Any]] = {
    "libx264": {"preset": "veryfast", "crf": 21},
    "mpeg4": {"q:v": 4},
    "libvpx": {"deadline": "good", "cpu-used": 5, "b:v": "1500k"},
}
"""Options by video codec that give the same bytes every time (libvpx's realtime mode does not)."""

_REPEATABLE = {"threads": 1, "fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1}
"""Options that keep dates and versions out of the file."""

_TRUNCATED_AT = 0.6
"""Share of the bytes that the truncated file keeps: its index, at the end, is lost."""

_WEIGHTS = ("piper-joe", "two-cities", "astronaut", "face-landmarker")


def build_demo(
    folder: str | Path,
    *,
    workers: int = 2,
    on_progress: Callable[[int, int, str], None] | None = None,
    specs: tuple[VideoSpec, ...] = VIDEO_SPECS,
) -> DemoTruth:
    """Make, finish or reuse the demo corpus in `folder`.

    Calls `on_progress(done, total, name)` after each video.

    Raises UserError if weights or ffmpeg are missing, or the folder cannot be written.
    """
    target, digest = Path(folder).absolute(), demo_digest(specs)
    finished = _finished(target, digest)
    if finished:
        return finished
    ffmpeg_path()
    for name in _WEIGHTS:  # before the workers, which would download them at the same time
        resolve(name)
    try:
        (target / PARTS).mkdir(parents=True, exist_ok=True)
        _remove_older(target, specs)
        sources = _make_all(target, digest, specs, workers, on_progress)
        truth = DemoTruth(digest, tuple(sources[spec.name] for spec in specs))
        truth.save(target)
        shutil.rmtree(target / PARTS)
    except OSError as error:
        raise UserError(
            f"the demo corpus cannot be written: {error.strerror or error}",
            where=target,
            hint="check permissions and disk space",
        ) from error
    return truth


def demo_digest(specs: tuple[VideoSpec, ...] = VIDEO_SPECS) -> str:
    """Digest of what determines the corpus: the modules that make it, and the specs."""
    names = ("build", "face", "portrait", "reading", "script", "speech", "truth", "visemes")
    code = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(code + repr(specs).encode()).hexdigest()[:20]


def make_source(folder: Path, spec: VideoSpec) -> SourceTruth:
    """Write one video and return its truth. The same spec gives the same bytes."""
    path = folder / spec.name
    if spec.defect == "not-a-video":
        path.write_text("This is a text file that only bears a video's name.\n")
        return SourceTruth(spec.name, path.stat().st_size, 0, 0, 0, 0, (), True, (), (), (), 0, spec.defect)
    seed = zlib.crc32(spec.name.encode())
    track, cuts = _audio_track(spec, seed)
    late_s = SOUND_LATE_MS / 1000 if spec.defect == "sound-late" else 0.0
    waveform = _delayed(track.waveform, late_s)
    count = math.ceil(len(waveform) / speech.RATE * spec.fps)
    ovals: list[np.ndarray] = []
    _encode(path, spec, _frames(spec, track, cuts, count, seed, ovals), waveform)
    if spec.defect == "truncated":
        os.truncate(path, int(path.stat().st_size * _TRUNCATED_AT))
    has_audio = bool(spec.audio)
    return SourceTruth(
        name=spec.name,
        bytes=path.stat().st_size,
        duration_s=round(count / spec.fps, 4),
        fps=spec.fps,
        width=spec.size,
        height=spec.size,
        words=tuple(
            WordTruth(w.text, round(w.start_s + late_s, 4), round(w.end_s + late_s, 4))
            for w in track.words
            if has_audio
        ),
        exact_times=track.exact,
        turns=tuple(
            TurnTruth(v, round(a + late_s, 4), round(b + late_s, 4)) for v, a, b in track.turns if has_audio
        ),
        cuts_s=tuple(round(frame / spec.fps, 4) for frame in cuts),
        face=_face_truth(ovals, spec.fps),
        shift_ms=late_s * 1000,
        fate=spec.defect or KEPT,
    )


def _encode(path: Path, spec: VideoSpec, frames: Iterable[np.ndarray], waveform: np.ndarray) -> None:
    """Encode frames uint8 [size, size, 3] and a waveform float32 [n] at `speech.RATE` with the codecs of the
    spec.
    """
    encoding = {"vcodec": spec.video, **_VIDEO_OPTIONS[spec.video], **_REPEATABLE}
    if spec.audio:
        encoding |= {"acodec": spec.audio, "ar": spec.rate, "ac": spec.channels}
    audio = waveform if spec.audio else None
    write_video(
        path,
        frames,
        (spec.size, spec.size),
        audio,
        fps=spec.fps,
        sample_rate=speech.RATE,
        encoding=encoding,
    )


def _audio_track(spec: VideoSpec, seed: int) -> tuple[speech.Track, list[int]]:
    """The audio track, and the frame numbers at which the video cuts to the next scene."""
    utterances: list[speech.Utterance] = []
    scene_ends = []
    for scene in spec.scenes:
        reader = scene.voice == "reader"
        utterances += [
            speech.read_passage(n) if reader else speech.say(SENTENCES[n], scene.voice) for n in scene.lines
        ]
        scene_ends.append(len(utterances))
    track = speech.assemble(utterances, seed)
    return track, [round(track.gaps[end - 1] * spec.fps) for end in scene_ends[:-1]]


def _delayed(waveform: np.ndarray, late_s: float) -> np.ndarray:
    """The waveform, `late_s` later: its first (silent) samples are repeated."""
    import numpy as np

    return np.concatenate([waveform[: round(late_s * speech.RATE)], waveform])


def _frames(
    spec: VideoSpec, track: speech.Track, cuts: list[int], count: int, seed: int, ovals: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Every frame of the scenes. Appends the true face oval of each frame to `ovals`."""
    starts, ends = [0, *cuts], [*cuts, count]
    for number, (scene, first, last) in enumerate(zip(spec.scenes, starts, ends, strict=True)):
        times = [frame / spec.fps for frame in range(first, last)]
        if not scene.look:
            yield from face.pattern(times, size=spec.size, seed=seed)
            continue
        for frame in face.animate(
            scene.look, track.phones, times, size=spec.size, seed=(seed + number) % 2**31
        ):
            ovals.append(frame.oval)
            yield frame.picture


def _face_truth(ovals: list[np.ndarray], fps: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Ovals at FACE_RATE_HZ from ovals at every frame (nearest frame), rounded to four digits."""
    count = math.floor((len(ovals) - 1) / fps * FACE_RATE_HZ) + 1 if ovals else 0
    picked = (ovals[min(len(ovals) - 1, round(i / FACE_RATE_HZ * fps))] for i in range(count))
    return tuple(tuple((round(float(x), 4), round(float(y), 4)) for x, y in oval) for oval in picked)


def _make_all(
    target: Path,
    digest: str,
    specs: tuple[VideoSpec, ...],
    workers: int,
    on_progress: Callable[[int, int, str], None] | None,
) -> dict[str, SourceTruth]:
    """Make the videos that are not done yet, the longest first. Returns the truth by file name."""
    sources = {spec.name: truth for spec in specs if (truth := _read_part(target, spec, digest))}
    todo = sorted(
        (p for p in specs if p.name not in sources), key=lambda p: -sum(len(s.lines) for s in p.scenes)
    )
    context = multiprocessing.get_context(
        "spawn"
    )  # forked children would share the parent's threads and locks
    with ProcessPoolExecutor(
        max(1, min(workers, len(todo))), mp_context=context, initializer=_quiet_worker
    ) as pool:
        jobs = {pool.submit(make_part, target, spec, digest): spec for spec in todo}
        try:
            for job in as_completed(jobs):
                sources[jobs[job].name] = job.result()
                if on_progress:
                    on_progress(len(sources), len(specs), jobs[job].name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sources


def make_part(target: Path, spec: VideoSpec, digest: str) -> SourceTruth:
    """Make one video in `.parts`, move it to `target`, then write its truth, which marks it as done."""
    parts = target / PARTS
    truth = make_source(parts, spec)
    os.replace(parts / spec.name, target / spec.name)
    marker = parts / f"{spec.name}.json"
    unfinished = marker.with_suffix(".part")
    unfinished.write_text(json.dumps({"digest": digest, "truth": asdict(truth)}))
    os.replace(unfinished, marker)
    return truth


def _read_part(target: Path, spec: VideoSpec, digest: str) -> SourceTruth | None:
    """The truth of a video that an interrupted build finished, or None."""
    try:
        marker = json.loads((target / PARTS / f"{spec.name}.json").read_text())
        truth = source_from_json(marker["truth"])
        same = marker["digest"] == digest and (target / spec.name).stat().st_size == truth.bytes
        return truth if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finished(target: Path, digest: str) -> DemoTruth | None:
    """The truth of a complete corpus that was made by the present code, or None."""
    if not (target / TRUTH_NAME).is_file():
        return None
    try:
        truth = DemoTruth.load(target)
    except UserError:
        return None
    complete = all(
        (target / s.name).is_file() and (target / s.name).stat().st_size == s.bytes for s in truth.sources
    )
    return truth if complete and truth.digest == digest else None


def _remove_older(target: Path, specs: tuple[VideoSpec, ...]) -> None:
    """Remove the truth of an older corpus, and its videos that are not part of `specs`."""
    try:
        older = DemoTruth.load(target)
    except UserError:
        return
    (target / TRUTH_NAME).unlink()
    for source in older.sources:
        if source.name not in {spec.name for spec in specs}:
            (target / source.name).unlink(missing_ok=True)


def _quiet_worker() -> None:
    """Use one thread per worker. Runs before numpy and OpenCV are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # MediaPipe's native log cannot be turned off; exceptions still come back through the pool
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import cv2

    cv2.setNumThreads(1)
