"""Does memory or cost grow with the number of sources? Prints peak memory of driver and workers, and cost per video-hour.

    python tests/benchmarks/ingest/scale.py --counts 10 100 [1000] [--seconds 4] [--folder DIR]

Sources are copies of one short film of a face that speaks, made distinct by a comment in their metadata; contents differ, so
each is measured. Cost is step seconds per hour of video, start-up apart.
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

from ingest.child import ffmpeg_path
from ingest.config import IngestConfig
from ingest.pipeline import ingest

sys.path.append(str(Path(__file__).parents[2]))
from made_films import speaking_face


class PeakMemory:
    """Largest resident memory of this process and of the workers below it, in MiB, sampled twice a second."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                    command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                process = int(status.parent.name)
                name = "driver" if process == os.getpid() else worker_name(command)
                if name and "VmRSS" in facts:
                    memory = int(facts["VmRSS"].split()[0]) / 1024
                    self.peak[name] = max(self.peak.get(name, 0.0), memory)


def worker_name(command: str) -> str:
    """A Ray worker's name as it shows itself; "" for other processes."""
    if not command.startswith("ray::"):
        return ""
    return "actors" if "MapWorker" in command else "board" if "Board" in command else "tasks"


def make_sources(film: Path, folder: Path, count: int) -> None:
    """`count` files of the same streams and different bytes."""
    folder.mkdir()
    for index in range(count):
        copy = ["-c", "copy", "-metadata", f"comment=copy {index}", str(folder / f"{index:05d}.mp4")]
        subprocess.run([ffmpeg_path(), "-loglevel", "error", "-i", str(film), *copy], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one source")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        film = speaking_face(folder / "film.mp4", seconds=arguments.seconds)
        print(f"{'sources':>8} {'wall s':>8} {'start s':>8} {'s / video h':>12} {'wall s / source':>16} {'busy':>6}  peak MiB")
        for count in arguments.counts:
            make_sources(film, folder / f"sources{count}", count)
            began = time.perf_counter()
            with PeakMemory() as memory:
                summary = ingest([str(folder / f"sources{count}")], folder / f"corpus{count}", IngestConfig())
            wall = time.perf_counter() - began
            assert summary.sources == count, summary.failed
            worked = sum(summary.step_seconds.values())
            steady = max(1e-9, summary.seconds - summary.start_seconds)
            cost, busy = worked / summary.video_seconds * 3600, worked / (steady * (os.cpu_count() or 1))
            peaks = ", ".join(f"{name} {value:.0f}" for name, value in sorted(memory.peak.items()))
            print(
                f"{count:8d} {wall:8.1f} {summary.start_seconds:8.1f} {cost:12.0f} {steady / count:16.2f} {busy:6.2f}  {peaks}",
                flush=True,
            )


if __name__ == "__main__":
    main()
