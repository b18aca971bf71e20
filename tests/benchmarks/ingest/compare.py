"""Ingest compared with a plain script on the same videos, models and settings.

    python tests/benchmarks/ingest/compare.py --folder DIR [--only engine|plain] [--limit N] [--json]

Prints the ratio of wall times, the share of core time spent in steps after start-up, seconds per second of
video by step, and where the engine's remaining time goes. The videos (the demo's 18 and 8 more, of public
content) are made once in DIR. Each side runs in its own process; loading libraries and models counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from uniavgen.ingest.io.ffmpeg import ffmpeg_path

ROOT = Path(__file__).resolve().parents[3]
MORE_SCENES = (
    (("joe", "astronaut", (2, 4)),),
    (("ann", "mirror", (7, 10)), ("ann", "mirror_close", (27,))),
    (("bob", "dark", (17, 19)),),
    (("joe", "astronaut_close", (33,)), ("ann", "mirror", (34,))),
    (("ann", "mirror_close", (0, 3)),),
    (("bob", "dark_close", (9,)), ("joe", "astronaut", (6,)), ("bob", "dark", (14,))),
    (("joe", "astronaut", (28, 31)),),
    (("ann", "mirror", (22,)), ("bob", "dark", (1,))),
)
"""Voice, look and sentences of the additional videos."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder of the videos and of both outputs")
    parser.add_argument("--only", choices=("plain", "engine"), help="run one side only")
    parser.add_argument("--limit", type=int, default=0, help="number of videos; 0: all")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--side", choices=("plain", "engine"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.folder, options.limit)))
        return
    videos = make_videos(options.folder / "videos")[: options.limit or None]
    print(f"{len(videos)} videos on {cores()} cores", file=sys.stderr)
    sides = [options.only] if options.only else ["plain", "engine"]
    results = {side: in_own_process(side, options.folder, options.limit) for side in sides}
    if len(results) == 2:
        results["ratio"] = results["plain"]["wall_s"] / results["engine"]["wall_s"]
    print(json.dumps(results) if options.json else report(results))


def make_videos(folder: Path) -> list[Path]:
    """The demo's videos and the additional ones, in order of their names."""
    from uniavgen.orchestration.demo.build import build_demo
    from uniavgen.orchestration.demo.script import VIDEO_SPECS, Scene

    more = [
        replace(
            VIDEO_SPECS[0],
            name=f"more_{number}.mp4",
            scenes=tuple(Scene(*scene) for scene in scenes),
            fps=25 + 5 * (number % 2),
        )
        for number, scenes in enumerate(MORE_SCENES)
    ]
    truth = build_demo(folder, workers=cores(), specs=(*VIDEO_SPECS, *more))
    return sorted(folder / source.name for source in truth.sources)


def in_own_process(side: str, folder: Path, limit: int) -> dict[str, Any]:
    """Figures of one side; `wall_s` is the wall time of its process."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    (binaries / "ffmpeg").unlink(missing_ok=True)
    (binaries / "ffmpeg").symlink_to(ffmpeg_path())  # the plain script's libraries call it by name
    path = os.pathsep.join([str(binaries), os.environ["PATH"], str(Path(sys.executable).parent)])
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--limit", str(limit)]
    started, busy = time.perf_counter(), busy_core_seconds()
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - started
    cpu = busy_core_seconds() - busy
    return {
        "wall_s": wall,
        "machine_busy_share": cpu / wall / cores(),
        **json.loads(done.stdout.splitlines()[-1]),
    }


def run_side(side: str, folder: Path, limit: int) -> dict[str, Any]:
    """In its own process: measure every video into a fresh folder."""
    videos = make_videos(folder / "videos")[: limit or None]
    out = folder / side
    shutil.rmtree(out, ignore_errors=True)
    return plain(videos, out) if side == "plain" else engine(videos, out)


def plain(videos: list[Path], out: Path) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent))
    started = time.perf_counter()
    from plain_script import PlainScript

    out.mkdir(parents=True)
    script = PlainScript()
    loaded = time.perf_counter() - started
    video_s, clips, failed = 0.0, 0, 0
    for video in videos:
        try:
            seconds, count = script.measure(video, out)
            video_s, clips = video_s + seconds, clips + count
        except Exception as error:  # the bad videos among them
            failed += 1
            print(f"plain: {video.name}: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
    script.close()
    return {
        "video_s": video_s,
        "clips": clips,
        "failed": failed,
        "start_s": loaded,
        "step_seconds": script.seconds,
    }


def engine(videos: list[Path], out: Path) -> dict[str, Any]:
    from uniavgen.ingest.pipeline import ingest

    history: list[tuple[float, dict[str, float], int]] = []

    def keep(progress: Any) -> None:
        running = sum(step.running for step in progress.steps)
        history.append((progress.elapsed_s, {step.name: step.seconds for step in progress.steps}, running))

    summary = ingest([str(video) for video in videos], out, on_progress=keep)
    seconds = {name: step.seconds for name, step in summary.steps.items()}
    totals = {
        "video_s": summary.video_seconds,
        "clips": summary.clips,
        "failed": sum(summary.failures.values()),
    }
    return {**totals, "step_seconds": seconds, **where_time_went(history, summary.seconds, cores())}


def where_time_went(
    history: list[tuple[float, dict[str, float], int]], wall_s: float, count: int
) -> dict[str, float]:
    """Start-up time (until the first model works), and the share of core time spent in steps after it.

    Idle core-seconds after start-up are split into those before the tail and those of the tail, the final
    part in which fewer steps run than there are cores.
    """
    models = ("diarize", "transcribe", "faces", "shots")
    start = next((at for at, seconds, _ in history if any(seconds.get(name, 0) > 0 for name in models)), 0.0)
    before = next((sum(seconds.values()) for at, seconds, _ in history if at >= start), 0.0)
    work = sum(history[-1][1].values()) - before if history else 0.0
    tail = wall_s
    for at, _, running in reversed(history):
        if running >= count:
            break
        tail = max(at, start)
    pairs = pairwise([*history, (wall_s, {}, 0)])
    idle = [
        (at, max(0, count - running) * (later[0] - at)) for (at, _, running), later in pairs if at >= start
    ]
    return {
        "start_s": start,
        "busy_share_after_start": work / max(1e-9, (wall_s - start) * count),
        "idle_before_tail_core_s": sum(spare for at, spare in idle if at < tail),
        "idle_in_tail_core_s": sum(spare for at, spare in idle if at >= tail),
        "tail_s": wall_s - tail,
    }


def report(results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for side in ("plain", "engine"):
        if side not in results:
            continue
        figures = results[side]
        video_s = max(figures["video_s"], 1e-9)
        lines.append(
            f"{side}: {figures['wall_s']:.0f} s for {figures['video_s']:.0f} s of video "
            f"({figures['wall_s'] / video_s:.2f} s per second), {figures['clips']} clips, "
            f"{figures['failed']} failed, "
            f"start-up {figures['start_s']:.0f} s, machine busy {figures['machine_busy_share']:.0%}"
        )
        for name, seconds in sorted(figures["step_seconds"].items(), key=lambda item: -item[1]):
            lines.append(f"    {name:12s} {seconds:8.1f} s   {seconds / video_s:.4f} s per second of video")
    if "engine" in results:
        figures = results["engine"]
        lines.append(
            f"cores busy with step work after start-up: {figures['busy_share_after_start']:.2f} (aim: 0.85)"
        )
        lines.append(
            f"the engine's other core-seconds: start-up {figures['start_s'] * cores():.0f}, "
            f"waiting for work {figures['idle_before_tail_core_s']:.0f}, "
            f"while the last sources end {figures['idle_in_tail_core_s']:.0f}"
        )
    if "ratio" in results:
        lines.append(f"the engine is {results['ratio']:.2f} times as fast as the plain script (aim: 2.5)")
    return "\n".join(lines)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def busy_core_seconds() -> float:
    """Busy core-seconds of the machine since it started."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
