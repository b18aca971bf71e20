"""Memory and cost of ingest by the number of sources.

    python tests/benchmarks/ingest/scale.py --counts 10 100 [1000] [--seconds 4] [--folder DIR]

Prints peak memory of driver and workers, and cost per hour of video. Sources are copies of one short video of
a speaking face with different metadata; their contents differ, so each is measured. Cost is CPU seconds of
the workers and their decoders per hour of video, after the models have loaded; other load on the machine
changes it little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.pipeline import ingest

sys.path.append(str(Path(__file__).parents[2] / "factories"))
from made_videos import speaking_face


class Usage:
    """Peak memory in MiB by kind of process, and CPU seconds of all workers over time."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self._cpu: dict[int, float] = {}
        self._history: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s_since(self, seconds: float) -> float:
        """CPU seconds of the workers from `seconds` after the first sample to the end."""
        first = self._history[0][0]
        before = max((cpu for at, cpu in self._history if at - first <= seconds), default=0.0)
        return self._history[-1][1] - before

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    status = (folder / "status").read_text()
                    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    times = (folder / "stat").read_text().rpartition(")")[2].split()[11:15]
                except OSError:
                    continue
                process = int(folder.name)
                name = "driver" if process == os.getpid() else worker_name(command)
                if name and "VmRSS" in facts:
                    memory = int(facts["VmRSS"].split()[0]) / 1024
                    self.peak[name] = max(self.peak.get(name, 0.0), memory)
                    if name != "driver":
                        self._cpu[process] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
            self._history.append((time.perf_counter(), sum(self._cpu.values())))


def worker_name(command: str) -> str:
    """Kind of a Ray worker by its process title; "" for other processes."""
    if not command.startswith("ray::"):
        return ""
    return "actors" if "MapWorker" in command else "run state" if "RunState" in command else "tasks"


def make_sources(video: Path, folder: Path, count: int) -> None:
    """`count` files of the same streams and different bytes."""
    folder.mkdir()
    for index in range(count):
        options = ["-c", "copy", "-metadata", f"comment=copy {index}", str(folder / f"{index:05d}.mp4")]
        subprocess.run([ffmpeg_path(), "-loglevel", "error", "-i", str(video), *options], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one source")
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        video = speaking_face(folder / "video.mp4", seconds=arguments.seconds)
        print(
            f"{'sources':>8} {'wall s':>8} {'start s':>8} {'CPU s / video h':>16} {'CPU s / source':>15}"
            "  peak MiB"
        )
        for count in arguments.counts:
            make_sources(video, folder / f"sources{count}", count)
            started = time.perf_counter()
            with Usage() as usage:
                summary = ingest([str(folder / f"sources{count}")], folder / f"corpus{count}", IngestConfig())
            wall = time.perf_counter() - started
            assert summary.sources == count, summary.failed
            work = usage.cpu_s_since(summary.start_seconds)
            cost = work / summary.video_seconds * 3600
            peaks = ", ".join(f"{name} {value:.0f}" for name, value in sorted(usage.peak.items()))
            print(
                f"{count:8d} {wall:8.1f} {summary.start_seconds:8.1f} {cost:16.0f} {work / count:15.2f}"
                f"  {peaks}",
                flush=True,
            )


if __name__ == "__main__":
    main()
