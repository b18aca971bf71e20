"""Time, memory and recall of duplicate detection, from ten thousand to 1.3 million clips.

    python tests/benchmarks/curation/duplicates.py [--rows 10000 100000 1300000] [--folder bench-duplicates]

Makes corpora of random fingerprints of clips of 3 to 9 s. Their bits are correlated (ten hidden movements):
the 48 lowest bits of a video hash are worth about 25, slightly fewer than on real video. One clip in twenty
is a planted duplicate: re-encoded (1.5 % of the picture bits differ, 2 % of the audio bits), cut differently
(up to 0.75 s later, 5 %), mirrored, dubbed (other audio) or with another picture. Each corpus runs in its own
process; "again" computes the groups again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from uniavgen.curation.config import DuplicateConfig
from uniavgen.shards.corpus.fingerprints import FREQUENCIES, MIRRORED, SOUND_ITEM_REACH_S, SOUND_ITEM_S
from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.corpus.tables import Corpus

CHUNK = 50_000
COPIES = 0.05
KINDS = ("re-encoded", "cut anew", "mirrored", "dubbed", "other picture")
VIDEO_BITS, SOUND_BITS = len(FREQUENCIES), 32
COLUMNS = {
    "seconds": ".1f",
    "of CPU": ".1f",
    "again": ".1f",
    "GiB": ".2f",
    "pairs": ",",
    "false": ",",
    "dropped": ",",
}
"""Printed columns and their formats; the row ends with the recall of each kind."""

LONGEST_S = 9
VIDEO_ITEMS = (LONGEST_S - 1) * 4 + 1
SOUND_ITEMS = int((LONGEST_S - SOUND_ITEM_REACH_S) / SOUND_ITEM_S) + 1


def make(root: Path, rows: int) -> Corpus:
    """A corpus of random clips; the last twentieth duplicate earlier ones (ground truth: truth.npz)."""
    corpus = Corpus.create(root)
    if corpus.versions()["clips"] >= 0:
        return corpus
    draw = np.random.default_rng(0)
    first_copy = round(rows * (1 - COPIES))
    origin = np.concatenate([np.arange(first_copy), draw.integers(0, first_copy, rows - first_copy)])
    kind = np.where(np.arange(rows) < first_copy, -1, np.arange(rows) % len(KINDS))
    seconds = draw.integers(3, LONGEST_S + 1, rows)[origin]
    video, sound = np.empty((rows, VIDEO_ITEMS), np.uint64), np.empty((rows, SOUND_ITEMS), np.uint32)
    mixing = _mixing(draw)
    for start in range(0, rows, CHUNK):
        part = slice(start, min(start + CHUNK, rows))
        video[part] = _random_bits(draw, part.stop - start, VIDEO_ITEMS, mixing)
        sound[part] = _random_bits(draw, part.stop - start, SOUND_ITEMS, np.eye(SOUND_BITS, dtype=np.float32))
    for number, name in enumerate(KINDS):
        chosen = np.flatnonzero(kind == number)
        _copy(draw, name, video, sound, chosen, origin[chosen])
    names = np.array([f"{n * 2654435761 % 2**64:020x}" for n in range(rows)])
    for start in range(0, rows, CHUNK):
        part = slice(start, min(start + CHUNK, rows))
        write_deltalake(
            str(root / "clips"),
            _table(names[part], seconds[part], video[part], sound[part], draw),
            mode="append",
        )
    np.savez(root / "truth.npz", names=names, origin=origin, kind=kind)
    return corpus


def _mixing(draw: np.random.Generator) -> np.ndarray:
    """[10, 63]: weights of the hidden movements in the bits of a video hash."""
    weights = draw.standard_normal((VIDEO_BITS, 10)) * 0.85 ** np.arange(10)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T.astype(np.float32)


def _random_bits(draw: np.random.Generator, clips: int, items: int, mixing: np.ndarray) -> np.ndarray:
    """[clips, items]: signs of a drifting mixture with noise."""
    hidden = np.zeros((clips, len(mixing)), np.float32)
    hashes = np.zeros((clips, items), np.uint64)
    for item in range(items):
        hidden = 0.5 * hidden + 0.87 * draw.standard_normal(hidden.shape, np.float32)
        seen = hidden @ mixing + 0.5 * draw.standard_normal((clips, mixing.shape[1]), np.float32)
        bits = np.zeros((clips, 64), np.uint8)
        bits[:, : mixing.shape[1]] = seen > 0
        hashes[:, item] = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]
    return hashes


def _copy(
    draw: np.random.Generator, kind: str, video: np.ndarray, sound: np.ndarray, to: np.ndarray, of: np.ndarray
) -> None:
    noise = {"cut anew": (0.05, 0.05)}.get(kind, (0.015, 0.02))
    later = {"cut anew": (3, round(0.75 / SOUND_ITEM_S))}.get(kind, (0, 0))
    for items, bits, share, lag, skipped in (
        (video, VIDEO_BITS, noise[0], later[0], "other picture"),
        (sound, SOUND_BITS, noise[1], later[1], "dubbed"),
    ):
        if kind == skipped:
            continue
        copied = items[of]
        copied[:, : copied.shape[1] - lag] = copied[:, lag:]
        copied[:, copied.shape[1] - lag :] = items[to][:, copied.shape[1] - lag :]
        for bit in range(bits):
            copied ^= (draw.random(copied.shape) < share).astype(items.dtype) << items.dtype.type(bit)
        if kind == "mirrored" and bits == VIDEO_BITS:
            copied ^= np.uint64(MIRRORED)
        items[to] = copied


def _table(
    names: np.ndarray, seconds: np.ndarray, video: np.ndarray, sound: np.ndarray, draw: np.random.Generator
) -> pa.Table:
    count, kinds = len(names), schema("clips")
    columns: dict[str, Any] = {
        "clip_id": pa.array(names.tolist()),
        "source_id": pa.array(names.tolist()),
        "start_s": pa.array(np.zeros(count)),
        "end_s": pa.array(seconds.astype(np.float64)),
        "duration_s": pa.array(seconds.astype(np.float64)),
        "width_px": pa.array(draw.choice([640.0, 1280.0, 1920.0], count)),
        "height_px": pa.array(draw.choice([360.0, 720.0, 1080.0], count)),
        "dnsmos_overall": pa.array(draw.uniform(1, 5, count)),
        "bits_per_pixel": pa.array(draw.uniform(0.01, 0.2, count)),
        "text_hash": pa.array(draw.integers(-(2**62), 2**62, count)),
        "video_hash": _lists(video, (seconds - 1) * 4 + 1),
        "sound_hash": _lists(
            sound, ((np.maximum(seconds, 4) - SOUND_ITEM_REACH_S) / SOUND_ITEM_S).astype(int) + 1
        ),
    }
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in kinds], schema=kinds)


def _lists(items: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    inside = np.arange(items.shape[1]) < lengths[:, None]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(starts, pa.array(items[inside].astype(np.int64)))


def measure(root: Path) -> dict[str, Any]:
    """Seconds, peak memory (GiB), recall by kind, and false pairs."""
    from uniavgen.curation.duplicates.groups import find_duplicates, load_or_find_pairs

    corpus, config = Corpus.open(root), DuplicateConfig()
    began = time.perf_counter()
    _, pairs = load_or_find_pairs(corpus, config)
    found_s, cpu_s = time.perf_counter() - began, time.process_time()
    ids = corpus.read("clips", columns=["clip_id"])
    verdicts = ids.append_column("kept", pa.array(np.ones(len(ids), bool)))
    began = time.perf_counter()
    duplicates = find_duplicates(corpus, verdicts, config)
    again_s = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with np.load(root / "truth.npz") as truth:
        order = np.argsort(truth["names"])
        origin, kind = truth["origin"], truth["kind"]
    a, b = order[pairs.a], order[pairs.b]
    right = origin[a] == origin[b]
    hit = np.zeros(len(kind), bool)
    for one, other in ((a, b), (b, a)):
        hit[one[origin[one] == other]] = True
    recall = {name: float(hit[kind == number].mean()) for number, name in enumerate(KINDS)}
    dropped = int((duplicates["clip_id"].to_numpy() != duplicates["kept_clip"].to_numpy()).sum())
    return {
        "seconds": found_s,
        "of CPU": cpu_s,
        "again": again_s,
        "GiB": peak,
        "recall": recall,
        "pairs": len(a),
        "false": int((~right).sum()),
        "dropped": dropped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_300_000])
    parser.add_argument("--folder", type=Path, default=Path("bench-duplicates"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{'clips':>10}", *(f"{name:>8}" for name in COLUMNS), *(f"{name:>13}" for name in KINDS))
    for rows in options.rows:
        root = options.folder / f"corpus-{rows}"
        make(root, rows)
        (root / "duplicates" / "pairs.npz").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--measure", str(root)]
        result = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        figures = [f"{result[name]:8{form}}" for name, form in COLUMNS.items()]
        shares = [f"{result['recall'][name]:13.3f}" for name in KINDS]
        print(f"{rows:10,}", *figures, *shares, flush=True)


if __name__ == "__main__":
    main()
