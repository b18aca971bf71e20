"""One source of hours: does memory stay bounded, and do speakers keep their names from piece to piece?

    python tests/benchmarks/ingest/long_source.py VIDEO [--minutes 120] [--layout split] [--folder DIR]

Loops a video (stream copy, so it takes seconds) up to the length, measures the result and prints the
peak memory of every worker, the cost by step, and how many speakers were found; the voices should come back under
the same names in every round.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from scale import Usage

from ingest import media
from ingest.child import ffmpeg_path
from ingest.config import IngestConfig
from ingest.pipeline import ingest
from shards.corpus import Corpus


def repeat(video: Path, target: Path, minutes: float) -> tuple[int, float]:
    """Loop a video up to the length; returns the rounds and the length of one in seconds."""
    length = media.probe(str(video), IngestConfig().limits).duration_s
    rounds = max(1, round(minutes * 60 / length))
    loop = ["-stream_loop", str(rounds - 1), "-i", str(video), "-c", "copy", str(target)]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *loop], check=True)
    return rounds, length


def names_by_place(turns: list[dict], length: float) -> dict[int, Counter[str]]:
    """For every second of the looped video: seconds by speaker's name, over all rounds."""
    found: dict[int, Counter[str]] = {}
    for turn in turns:
        second = int(turn["start_s"])
        while second < turn["end_s"]:
            shared = min(turn["end_s"], second + 1) - max(turn["start_s"], second)
            found.setdefault(int(second % length), Counter())[turn["label"]] += shared
            second += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder otherwise")
    parser.add_argument(
        "--layout", choices=("joint", "split"), default="split", help="speech and sight in one worker, or apart"
    )
    arguments = parser.parse_args()
    config = IngestConfig()
    config.stages.layout = arguments.layout
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        long = folder / f"long{arguments.video.suffix}"
        rounds, length = repeat(arguments.video, long, arguments.minutes)
        print(f"{rounds} rounds of {length:.1f} s: {rounds * length / 60:.0f} minutes, {long.stat().st_size / 2**20:.0f} MiB")
        with Usage() as usage:
            summary = ingest([str(long)], folder / "corpus", config)
        for name, value in sorted(usage.peak.items()):
            print(f"peak memory of {name:8s} {value:7.0f} MiB")
        for uri, failure in summary.failed.items():
            print(f"failed: {uri}: {failure}")
        for name, seconds in summary.step_seconds.items():
            print(f"{name:12s} {seconds:8.1f} s, {seconds / max(1e-9, summary.video_seconds):.4f} a video second")
        (source,) = Corpus.open(folder / "corpus").read("sources", ["turns", "words"]).to_pylist()
        places = names_by_place(source["turns"], length)
        steady = sum(names.most_common(1)[0][1] for names in places.values())
        spoken = sum(sum(names.values()) for names in places.values())
        print(
            f"{len({turn['label'] for turn in source['turns']})} speakers, {summary.clips} clips, {len(source['words'])} words"
        )
        print(f"share of speech under the name that its place has most often: {steady / max(1e-9, spoken):.3f}")


if __name__ == "__main__":
    main()
