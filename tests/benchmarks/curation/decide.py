"""Time and memory of deciding, from ten thousand to ten million clips.

    python tests/benchmarks/curation/decide.py [--rows 10000 100000 1300000 10000000] [--folder /tmp/bench]

Makes corpora of random clips (48 signals, words, a speaker embedding of 192 numbers; one speaker per
`--clips-per-speaker` clips) and runs each question in its own process. The ratio column is the cost per clip
against the smallest corpus. `voices` compares all speakers, which is done once and stored; `decide` follows;
`again` repeats it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus

CHUNK = 100_000
QUESTIONS = ("voices", "decide", "again", "what_if", "sensitivity")


def make(root: Path, rows: int, clips_per_speaker: int) -> Corpus:
    """A corpus of random clips; most pass each rule of the default policy."""
    corpus = Corpus.create(root)
    if corpus.versions()["clips"] >= 0:
        return corpus
    draw = np.random.default_rng(0)
    for first in range(0, rows, CHUNK):
        write_deltalake(
            str(root / "clips"),
            _chunk(draw, first, min(CHUNK, rows - first), clips_per_speaker),
            mode="append",
        )
    return corpus


def _chunk(draw: np.random.Generator, first: int, count: int, clips_per_speaker: int) -> pa.Table:
    kinds = schema("clips")
    number = np.arange(first, first + count)
    speaker = number // clips_per_speaker
    seconds = draw.integers(2, 10, count).astype(np.float64)
    columns: dict[str, pa.Array] = {
        "clip_id": pa.array([f"{n * 2654435761 % 2**64:020x}" for n in number.tolist()]),
        "source_id": pa.array([f"{n:032x}" for n in speaker.tolist()]),
        "speaker": pa.array([f"{n:08x}-S00" for n in speaker.tolist()]),
        "start_s": pa.array(number % clips_per_speaker * 10.0),
        "end_s": pa.array(number % clips_per_speaker * 10.0 + seconds),
        "transcript": pa.array(["the quick brown fox jumps over the lazy dog"] * count),
        "language": pa.array(draw.choice(["en", "en", "en", "ru"], count)),
    }
    voices = np.stack([np.random.default_rng(n).standard_normal(192) for n in np.unique(speaker)]).astype(
        np.float32
    )
    rows = voices[speaker - speaker[0]]
    columns["voice"] = pa.ListArray.from_arrays(
        np.arange(count + 1, dtype=np.int32) * 192, pa.array(rows.ravel())
    )
    centre = {
        "has_audio": 1.0,
        "face_count": 1.0,
        "face_coverage": 1.0,
        "word_score": 0.8,
        "luma": 110.0,
        "snr_db": 20.0,
    }
    centre |= {"language_probability": 0.9, "face_height_px": 250.0, "asr_compression_ratio": 1.4}
    for name in SIGNALS:
        spread = 0.0 if name in ("has_audio", "face_count") else 0.2 * centre.get(name, 0.2)
        columns[name] = pa.array(draw.normal(centre.get(name, 0.0), spread, count))
    columns["duration_s"] = pa.array(seconds)
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in kinds], schema=kinds)


def ask(root: Path, question: str) -> dict[str, float]:
    """Seconds and peak memory (GiB) of one question in this process."""
    from uniavgen.curation.config import SplitConfig
    from uniavgen.curation.people.identities import compare_speakers
    from uniavgen.curation.policy.decisions import decide
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.curation.policy.what_if import clips_for, sensitivity, what_if

    corpus, policy = Corpus.open(root), load_policy("default")
    began = time.perf_counter()
    if question == "voices":
        compare_speakers(corpus, SplitConfig())
    elif question in ("decide", "again"):
        assert decide(corpus, policy).written == (question == "decide")
    elif question == "what_if":
        what_if(corpus, policy, ["snr=20"])
    else:
        sensitivity(clips_for(corpus, policy), policy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": time.perf_counter() - began, "gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_300_000])
    parser.add_argument("--clips-per-speaker", type=int, default=13)
    parser.add_argument("--folder", type=Path, default=Path("bench-curation"))
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(Path(options.ask[0]), options.ask[1])))
        return
    per_clip: dict[str, float] = {}
    print(f"{'clips':>12} {'question':>12} {'seconds':>9} {'peak GiB':>9} {'cost per clip, ratio':>22}")
    for rows in options.rows:
        root = options.folder / f"corpus-{rows}-{options.clips_per_speaker}"
        make(root, rows, options.clips_per_speaker)
        shutil.rmtree(root / "decisions", ignore_errors=True)  # of an earlier run in the same folder
        for question in QUESTIONS:
            command = [sys.executable, __file__, "--ask", str(root), question]
            result = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            cost = result["seconds"] / rows
            ratio = cost / per_clip.setdefault(question, cost)
            print(
                f"{rows:12,} {question:>12} {result['seconds']:9.1f} {result['gib']:9.2f} {ratio:22.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
