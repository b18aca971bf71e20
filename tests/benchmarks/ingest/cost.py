"""CPU seconds of ingest by step, in one process without Ray.

    python tests/benchmarks/ingest/cost.py VIDEO... [--json]

User and system time of the process and of its decoders, for loading the models and for each step, per second
of video. Unlike the seconds of a step in a run, these do not contain waiting for a busy core.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.progress import RunState
from uniavgen.ingest.engine.runner import Runner
from uniavgen.ingest.engine.step import POOLS
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.records import Probe, SourceRecord
from uniavgen.shards.corpus.tables import Corpus


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    return sum(os.times()[:4])


def measure(videos: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of video, CPU seconds of the start, and CPU seconds by step."""
    torch.set_num_threads(1)
    graph, seconds = step_graph(IngestConfig()), dict[str, float]()
    Corpus.create(folder / "corpus")
    (folder / "run").mkdir()
    report = RunState(list(graph.by_name))
    video_s, cache = 0.0, StepCache(folder / "corpus")
    runner = Runner(graph, POOLS, folder / "run", folder / "corpus", report)
    runner.warm(list(graph.by_name))
    start = cpu_seconds()
    began: dict[str, float] = {}
    start_step, end_step = report.start_step, report.end_step

    def started(uri: str, step: str) -> None:
        began[step] = cpu_seconds()
        start_step(uri, step)

    def ended(uri: str, walls: dict[str, float], *rest: Any, **options: Any) -> None:
        step = next((name for name in reversed(began) if name in walls), "decode")
        seconds[step] = seconds.get(step, 0.0) + cpu_seconds() - began.pop(step)
        end_step(uri, walls, *rest, **options)

    report.start_step, report.end_step = started, ended  # type: ignore[method-assign]
    for video in videos:
        record = runner.run(runner.identify(SourceRecord(str(Path(video).resolve()))))
        probe = cache.load(record.source_id, "probe", graph.keys["probe"], Probe)
        video_s += probe.duration_s if probe else 0.0
    return {"video_s": video_s, "start_s": start, "step_cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.videos, Path(folder))
    if options.json:
        print(json.dumps(results))
        return
    video_s = max(results["video_s"], 1e-9)
    print(f"{video_s:.1f} s of video; start {results['start_s']:.1f} CPU-s")
    for name, spent in sorted(results["step_cpu_seconds"].items(), key=lambda item: -item[1]):
        print(f"{name:12s} {spent:8.2f} CPU-s {spent / video_s:.4f} per second of video")


if __name__ == "__main__":
    main()
