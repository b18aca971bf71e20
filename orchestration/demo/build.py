"""Build the demo corpus: make every source video of the script, good and bad, with the truth beside them.

In: a folder. Out: the videos and truth.json in it. A finished corpus is reused, an interrupted one goes on
where it was: each video has its own piece of truth in `.parts/`, which is the proof that it is done.
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
from uniavgen.orchestration.demo.script import PLANS, SENTENCES, SOUND_LATE_MS, SourcePlan
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

_TRUNCATED_AT = 0.6  # share of the bytes that are left of the truncated file: its index, at the end, is gone


def build_demo(
    folder: str | Path,
    *,
    workers: int = 2,
    on_progress: Callable[[int, int, str], None] | None = None,
    plans: tuple[SourcePlan, ...] = PLANS,
) -> DemoTruth:
    """Make (or finish, or reuse) the demo corpus in `folder`; `on_progress(done, total, name)` follows it.

    Raises UserError where weights or ffmpeg are missing or the folder cannot be written.
    """
    target, digest = Path(folder).absolute(), demo_digest(plans)
    done = _finished(target, digest)
    if done:
        return done
    ffmpeg_path()
    for name in (
        "piper-joe",
        "two-cities",
        "astronaut",
        "face-landmarker",
    ):  # here, so that workers never race for them
        resolve(name)
    try:
        (target / PARTS).mkdir(parents=True, exist_ok=True)
        _clear_older(target, plans)
        sources = _make_all(target, digest, plans, workers, on_progress)
        truth = DemoTruth(digest, tuple(sources[plan.name] for plan in plans))
        truth.save(target)
        shutil.rmtree(target / PARTS)
    except OSError as error:
        raise UserError(
            f"the demo corpus cannot be written: {error.strerror or error}",
            where=target,
            hint="check rights and space",
        ) from error
    return truth


def demo_digest(plans: tuple[SourcePlan, ...] = PLANS) -> str:
    """Names what the corpus is made by: the code of this package that makes it, and the plans."""
    names = ("build", "face", "portrait", "reading", "script", "speech", "truth", "visemes")
    code = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(code + repr(plans).encode()).hexdigest()[:20]


def make_source(folder: Path, plan: SourcePlan) -> SourceTruth:
    """Make one video of the corpus; a pure function of the plan but for the file it writes."""
    path = folder / plan.name
    if plan.defect == "not-a-video":
        path.write_text("This is a text file that only bears a video's name.\n")
        return SourceTruth(plan.name, path.stat().st_size, 0, 0, 0, 0, (), True, (), (), (), 0, plan.defect)
    seed = zlib.crc32(plan.name.encode())
    track, cuts = _sound(plan, seed)
    late_s = SOUND_LATE_MS / 1000 if plan.defect == "sound-late" else 0.0
    waveform = _delayed(track.waveform, late_s)
    count = math.ceil(len(waveform) / speech.RATE * plan.fps)
    ovals: list[np.ndarray] = []
    _write(path, plan, _frames(plan, track, cuts, count, seed, ovals), waveform)
    if plan.defect == "truncated":
        os.truncate(path, int(path.stat().st_size * _TRUNCATED_AT))
    heard = bool(plan.audio)
    return SourceTruth(
        name=plan.name,
        bytes=path.stat().st_size,
        duration_s=round(count / plan.fps, 4),
        fps=plan.fps,
        width=plan.size,
        height=plan.size,
        words=tuple(
            WordTruth(w.text, round(w.start_s + late_s, 4), round(w.end_s + late_s, 4))
            for w in track.words
            if heard
        ),
        exact_times=track.exact,
        turns=tuple(
            TurnTruth(v, round(a + late_s, 4), round(b + late_s, 4)) for v, a, b in track.turns if heard
        ),
        cuts_s=tuple(round(frame / plan.fps, 4) for frame in cuts),
        face=_face_truth(ovals, plan.fps),
        shift_ms=late_s * 1000,
        fate=plan.defect or KEPT,
    )


def _write(path: Path, plan: SourcePlan, frames: Iterable[np.ndarray], waveform: np.ndarray) -> None:
    """Encode frames uint8 [size, size, 3] and a waveform float32 [n] at `speech.RATE` as the plan says."""
    encoding = {"vcodec": plan.video, **_VIDEO_OPTIONS[plan.video], **_REPEATABLE}
    if plan.audio:
        encoding |= {"acodec": plan.audio, "ar": plan.rate, "ac": plan.channels}
    audio = waveform if plan.audio else None
    write_video(
        path,
        frames,
        (plan.size, plan.size),
        audio,
        fps=plan.fps,
        sample_rate=speech.RATE,
        encoding=encoding,
    )


def _sound(plan: SourcePlan, seed: int) -> tuple[speech.Track, list[int]]:
    """The plan's sound track and the frames at which its picture cuts to the next scene."""
    utterances: list[speech.Utterance] = []
    scene_ends = []
    for scene in plan.scenes:
        reader = scene.voice == "reader"
        utterances += [
            speech.read_passage(n) if reader else speech.say(SENTENCES[n], scene.voice) for n in scene.lines
        ]
        scene_ends.append(len(utterances))
    track = speech.assemble(utterances, seed)
    return track, [round(track.gaps[end - 1] * plan.fps) for end in scene_ends[:-1]]


def _delayed(waveform: np.ndarray, late_s: float) -> np.ndarray:
    """The sound starting `late_s` later, after a stretch of its own first (silent) samples."""
    import numpy as np

    return np.concatenate([waveform[: round(late_s * speech.RATE)], waveform])


def _frames(
    plan: SourcePlan, track: speech.Track, cuts: list[int], count: int, seed: int, ovals: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Every frame of the plan's scenes; the true ovals are left in `ovals`."""
    starts, ends = [0, *cuts], [*cuts, count]
    for number, (scene, first, last) in enumerate(zip(plan.scenes, starts, ends, strict=True)):
        times = [frame / plan.fps for frame in range(first, last)]
        if not scene.look:
            yield from face.pattern(times, size=plan.size, seed=seed)
            continue
        for frame in face.animate(
            scene.look, track.phones, times, size=plan.size, seed=(seed + number) % 2**31
        ):
            ovals.append(frame.oval)
            yield frame.picture


def _face_truth(ovals: list[np.ndarray], fps: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Ovals at FACE_RATE_HZ from ovals at every frame (the nearest frame's), four digits each."""
    count = math.floor((len(ovals) - 1) / fps * FACE_RATE_HZ) + 1 if ovals else 0
    picked = (ovals[min(len(ovals) - 1, round(i / FACE_RATE_HZ * fps))] for i in range(count))
    return tuple(tuple((round(float(x), 4), round(float(y), 4)) for x, y in oval) for oval in picked)


def _make_all(
    target: Path,
    digest: str,
    plans: tuple[SourcePlan, ...],
    workers: int,
    on_progress: Callable[[int, int, str], None] | None,
) -> dict[str, SourceTruth]:
    """Make what is not done yet, the longest first; the truth of every source by name."""
    sources = {plan.name: truth for plan in plans if (truth := _part_done(target, plan, digest))}
    todo = sorted(
        (p for p in plans if p.name not in sources), key=lambda p: -sum(len(s.lines) for s in p.scenes)
    )
    context = multiprocessing.get_context(
        "spawn"
    )  # forked children would share the parent's threads and locks
    with ProcessPoolExecutor(
        max(1, min(workers, len(todo))), mp_context=context, initializer=_quiet_worker
    ) as pool:
        jobs = {pool.submit(make_part, target, plan, digest): plan for plan in todo}
        try:
            for job in as_completed(jobs):
                sources[jobs[job].name] = job.result()
                if on_progress:
                    on_progress(len(sources), len(plans), jobs[job].name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sources


def make_part(target: Path, plan: SourcePlan, digest: str) -> SourceTruth:
    """In a worker: make one video in `.parts`, move it to its place, then write the proof."""
    parts = target / PARTS
    truth = make_source(parts, plan)
    os.replace(parts / plan.name, target / plan.name)
    proof = parts / f"{plan.name}.json"
    part = proof.with_suffix(".part")
    part.write_text(json.dumps({"digest": digest, "truth": asdict(truth)}))
    os.replace(part, proof)
    return truth


def _part_done(target: Path, plan: SourcePlan, digest: str) -> SourceTruth | None:
    """The truth of a source that an interrupted run finished, or None."""
    try:
        proof = json.loads((target / PARTS / f"{plan.name}.json").read_text())
        truth = source_from_json(proof["truth"])
        return (
            truth
            if proof["digest"] == digest and (target / plan.name).stat().st_size == truth.bytes
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finished(target: Path, digest: str) -> DemoTruth | None:
    """The truth of a corpus that stands whole and was made by this very code, or None."""
    if not (target / TRUTH_NAME).is_file():
        return None
    try:
        truth = DemoTruth.load(target)
    except UserError:
        return None
    whole = all(
        (target / s.name).is_file() and (target / s.name).stat().st_size == s.bytes for s in truth.sources
    )
    return truth if whole and truth.digest == digest else None


def _clear_older(target: Path, plans: tuple[SourcePlan, ...]) -> None:
    """Remove the truth of an older corpus and those of its videos that this one has not."""
    try:
        older = DemoTruth.load(target)
    except UserError:
        return
    (target / TRUTH_NAME).unlink()
    for source in older.sources:
        if source.name not in {plan.name for plan in plans}:
            (target / source.name).unlink(missing_ok=True)


def _quiet_worker() -> None:
    """One thread a worker: the pool is the parallelism. Set before numpy and OpenCV are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # MediaPipe's native log cannot be turned down; exceptions come back through the pool all the same
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import cv2

    cv2.setNumThreads(1)
