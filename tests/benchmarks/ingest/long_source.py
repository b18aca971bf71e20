"""One source of hours: peak memory, and whether speakers keep their names from chunk to chunk.

    python tests/benchmarks/ingest/long_source.py VIDEO [--minutes 120] [--layout split] [--folder DIR]

Loops a video up to the length (by stream copy, which takes seconds), ingests the result, and prints the peak
memory of every worker, the cost by step and the number of speakers. Voices should have the same names in
every round.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from scale import Usage

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.pipeline import ingest
from uniavgen.shards.corpus.tables import Corpus

TICKS_PER_S = 10


def repeat(video: Path, target: Path, minutes: float) -> int:
    """Loop a video up to the length; returns the number of rounds."""
    rounds = max(1, round(minutes * 60 / length_s(video)))
    loop = ["-stream_loop", str(rounds - 1), "-i", str(video), "-c", "copy", str(target)]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *loop], check=True)
    return rounds


def length_s(video: Path) -> float:
    return probe_video(str(video), IngestConfig().limits).duration_s


def steadiness(turns: list[dict], round_s: float) -> float:
    """Share of the speech with the speakers that most rounds have at that time."""
    speakers: dict[int, set[str]] = {}
    for turn in turns:
        for tick in range(round(turn["start_s"] * TICKS_PER_S), round(turn["end_s"] * TICKS_PER_S)):
            speakers.setdefault(tick, set()).add(turn["label"])
    by_time: dict[int, Counter[frozenset[str]]] = {}
    for tick, names in speakers.items():
        by_time.setdefault(int(tick % (round_s * TICKS_PER_S)), Counter())[frozenset(names)] += 1
    return sum(max(names.values()) for names in by_time.values()) / max(1, len(speakers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary one")
    parser.add_argument(
        "--layout",
        choices=("joint", "split"),
        default="split",
        help="speech and sight in one worker or separate",
    )
    arguments = parser.parse_args()
    config = IngestConfig()
    config.pools.layout = arguments.layout
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        long = folder / f"long{arguments.video.suffix}"
        rounds = repeat(arguments.video, long, arguments.minutes)
        round_s = length_s(long) / rounds  # each join loses a few milliseconds
        print(
            f"{rounds} rounds of {round_s:.2f} s: {rounds * round_s / 60:.0f} minutes, "
            f"{long.stat().st_size / 2**20:.0f} MiB"
        )
        with Usage() as usage:
            summary = ingest([str(long)], folder / "corpus", config)
        for name, value in sorted(usage.peak.items()):
            print(f"peak memory of {name:8s} {value:7.0f} MiB")
        for uri, failure in summary.failed.items():
            print(f"failed: {uri}: {failure}")
        for name, seconds in summary.step_seconds.items():
            print(f"{name:12s} {seconds:8.1f} s, {seconds / max(1e-9, summary.video_seconds):.4f} s/s")
        (source,) = Corpus.open(folder / "corpus").read("sources", ["turns", "words"]).to_pylist()
        print(
            f"{len({turn['label'] for turn in source['turns']})} speakers, {summary.clips} clips, "
            f"{len(source['words'])} words"
        )
        print(f"share of speech with the speakers of most rounds: {steadiness(source['turns'], round_s):.3f}")


if __name__ == "__main__":
    main()
