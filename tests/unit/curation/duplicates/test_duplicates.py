"""Duplicates: planted ones are found with their kind, nothing else is, and the kept clip depends on
measurements only.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.groups import find_duplicates
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures.fingerprint import sound_hash, sound_span, text_hash, video_hash
from uniavgen.ingest.measures.hash import VideoHasher
from uniavgen.shards.corpus.tables import Corpus, clip_id
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

SIDE = 192
VIDEO_S = 12.0
SPANS = [(0.0, 4.6), (4.8, 11.5)]
"""Clips of each video."""


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def moving_portrait(seed: int) -> np.ndarray:
    """uint8 [F, SIDE, SIDE, 3]: a portrait that sways, leans and comes nearer, irregularly."""
    photo = cv2.cvtColor(cv2.imread(str(resolve("astronaut") / "astronaut.png")), cv2.COLOR_BGR2RGB)
    steps = np.random.default_rng(seed).standard_normal((4, round(VIDEO_S * VIDEO_FPS) + 32))
    smooth = np.stack([np.convolve(row, np.hanning(14), "same")[16:-16] for row in steps])
    frames = []
    for x, y, turn, nearer in smooth.T:
        matrix = cv2.getRotationMatrix2D((225, 130), 1.5 * turn, 0.55 + 0.01 * nearer)
        matrix[:, 2] += (SIDE / 2 - 225 + 3 * x, SIDE / 2 - 130 + 3 * y)
        frames.append(cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA))
    return np.stack(frames)


def encoded(path: Path, picture: np.ndarray, sound: np.ndarray) -> Path:
    wave = path.with_suffix(".raw")
    wave.write_bytes(sound.tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIDE}x{SIDE}", "-r", VIDEO_FPS, "-i", "pipe:"]
    ffmpeg(*raw, "-f", "s16le", "-ar", 16000, "-ac", 1, "-i", wave, *CODECS, path, data=picture.tobytes())
    return path


CODECS = [
    "-c:v",
    "libx264",
    "-preset",
    "ultrafast",
    "-crf",
    20,
    "-pix_fmt",
    "yuv420p",
    "-c:a",
    "aac",
    "-b:a",
    "64k",
]
VARIANTS: dict[str, list[object]] = {
    "half": ["-c:v", "libx264", "-preset", "ultrafast", "-b:v", "90k", "-c:a", "aac", "-b:a", "32k"],
    "crop": ["-vf", "crop=trunc(iw*0.45)*2:trunc(ih*0.45)*2", *CODECS],
    "flip": ["-vf", "hflip,scale=128:-2", *CODECS],
    "fast": ["-vf", "setpts=PTS/1.1", "-af", "atempo=1.1", *CODECS],
    "late": ["-ss", 0.73, *CODECS],
}


def measured(path: Path, name: str, spans: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Clip rows of a video, with fingerprints as ingest computes them."""
    scale = f"fps={VIDEO_FPS}:start_time=0,scale=96:96:flags=area"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    pcm = np.frombuffer(ffmpeg("-i", path, "-vn", "-ac", 1, "-ar", 16000, "-f", "s16le", "-"), np.int16)
    hasher = VideoHasher()
    for index, frame in enumerate(np.frombuffer(raw, np.uint8).reshape(-1, 96, 96, 3)):
        hasher.add_frame(index, frame)
    rows = []
    for start, end in spans:
        low, high = (round(at * 16000) for at in sound_span(start, end))
        rows.append(
            {
                "clip_id": clip_id(name, start, end),
                "source_id": name,
                "start_s": start,
                "end_s": end,
                "duration_s": end - start,
                "width_px": 640.0,
                "height_px": 480.0,
                "video_hash": video_hash(hasher.hashes(), start, end),
                "sound_hash": sound_hash(pcm[low:high]),
                "text_hash": text_hash(f"{name} {start}"),
            }
        )
    return rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Clip rows by name of two videos of one portrait, `one` and `two`, and of variants of `one`."""
    import importlib.util

    import soundfile

    folder = tmp_path_factory.mktemp("videos")
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.origin is not None
    speech, _ = soundfile.read(Path(spec.origin).parent / "sample" / "sample.wav", dtype="int16")
    length = round(VIDEO_S * 16000)
    pictures, sounds = (
        [moving_portrait(1), moving_portrait(2)],
        [speech[16000 : 16000 + length], speech[14 * 16000 :][:length]],
    )
    paths = {
        "one": encoded(folder / "one.mp4", pictures[0], sounds[0]),
        "two": encoded(folder / "two.mp4", pictures[1], sounds[1]),
        "dubbed": encoded(folder / "dubbed.mp4", pictures[0], speech[7 * 16000 :][:length][::-1]),
        "other-face": encoded(folder / "other-face.mp4", moving_portrait(3), sounds[0]),
    }
    for name, arguments in VARIANTS.items():
        paths[name] = folder / f"{name}.mp4"
        ffmpeg("-i", paths["one"], *arguments, paths[name])
    spans = dict.fromkeys(paths, SPANS)
    spans["fast"] = [(round(start / 1.1, 2), round(end / 1.1, 2)) for start, end in SPANS]
    spans["late"] = [(0.0, SPANS[0][1] - 0.73), (SPANS[1][0] - 0.6, SPANS[1][1] - 0.9)]
    return {name: measured(path, name, spans[name]) for name, path in paths.items()}


def corpus_of(folder: Path, rows: list[dict[str, Any]]) -> Corpus:
    corpus = Corpus.create(folder)
    corpus.upsert("clips", rows)
    return corpus


def verdicts(rows: list[dict[str, Any]], rejected: tuple[str, ...] = ()) -> pa.Table:
    names = [row["clip_id"] for row in rows]
    return pa.table({"clip_id": names, "kept": [name not in rejected for name in names]})


def groups(
    folder: Path, rows: list[dict[str, Any]], config: DuplicateConfig | None = None
) -> dict[str, dict[str, Any]]:
    table = find_duplicates(corpus_of(folder, rows), verdicts(rows), config or DuplicateConfig())
    return {row["clip_id"]: row for row in table.to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "kinds"),
    [
        ("half", {"copy"}),
        ("flip", {"copy"}),
        ("fast", {"copy"}),
        ("late", {"copy", "overlap"}),
        ("crop", {"copy", "same-sound"}),
        ("dubbed", {"same-picture"}),
        ("other-face", {"same-sound"}),
    ],
)
def test_planted_duplicate_is_found_with_its_kind(
    videos: dict[str, list[dict[str, Any]]], variant: str, kinds: set[str], tmp_path: Path
) -> None:
    rows = [*videos["one"], *videos["two"], *videos[variant]]
    duplicates = groups(tmp_path / "corpus", rows)
    for first, second in zip(videos["one"], videos[variant], strict=True):
        pair = duplicates[first["clip_id"]], duplicates[second["clip_id"]]
        assert pair[0]["kept_clip"] == pair[1]["kept_clip"] in (first["clip_id"], second["clip_id"])
        lost = next(row for row in pair if row["kind"] != "kept")
        assert lost["kind"] in kinds
        assert lost["mirrored"] == (variant == "flip")
        if variant == "fast":
            assert 1.04 < lost["speed"] < 1.11
        if variant in ("half", "flip", "late"):
            assert lost["speed"] == 1.0
            assert max(lost["picture"], lost["sound"]) <= 0.12
    assert not {row["clip_id"] for row in videos["two"]} & set(duplicates)


def planted(name: str, seed: int, seconds: float = 5.0, at_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A clip of an endless random video with this seed, from `at_s`."""
    draw = np.random.default_rng(seed)
    video, sound = draw.integers(1, 2**63, 200), draw.integers(1, 2**32, 400)
    first, heard = round((at_s + 0.5) * 4), round(at_s / (1365 / 11025))
    return {
        "clip_id": name,
        "source_id": name,
        "start_s": at_s,
        "end_s": at_s + seconds,
        "duration_s": seconds,
        "width_px": 640.0,
        "height_px": 480.0,
        "dnsmos_overall": 3.0,
        "bits_per_pixel": 0.1,
        "video_hash": video[first : first + round((seconds - 1) * 4) + 1].tolist(),
        "sound_hash": sound[heard : heard + round((seconds - 2.7) / (1365 / 11025)) + 1].tolist(),
        **changes,
    }


def kept(duplicates: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["kept_clip"] for name, row in duplicates.items()}


@pytest.mark.parametrize(
    "better",
    [
        {"width_px": 1280.0, "height_px": 960.0},
        {"dnsmos_overall": 3.6},
        {"bits_per_pixel": 0.3},
    ],
)
def test_dedup_keeps_highest_quality_copy(better: dict[str, Any], tmp_path: Path) -> None:
    rows = [planted("a", 1), planted("z", 1, **better), planted("m", 1), planted("other", 2)]
    assert kept(groups(tmp_path / "corpus", rows)) == {"a": "z", "z": "z", "m": "z"}


def test_hundred_copies_leave_one(tmp_path: Path) -> None:
    rows = [planted(f"c{i:03d}", 1, width_px=640.0 + (i == 57) * 640) for i in range(100)]
    duplicates = groups(tmp_path / "corpus", rows)
    assert set(kept(duplicates).values()) == {"c057"}
    assert len(duplicates) == 100
    assert [name for name, row in duplicates.items() if row["kind"] == "kept"] == ["c057"]


def test_chain_of_overlaps_keeps_clips_that_share_nothing(tmp_path: Path) -> None:
    rows = [
        planted("a", 1, 6.0, 0.0),
        planted("b", 1, 6.0, 3.0),
        planted("c", 1, 6.0, 6.0, dnsmos_overall=4.0),
    ]
    assert kept(groups(tmp_path / "corpus", rows)) == {"c": "c", "b": "c"}


def test_short_overlap_is_not_duplicate(tmp_path: Path) -> None:
    assert groups(tmp_path / "corpus", [planted("a", 1, 9.0, 0.0), planted("b", 1, 9.0, 5.0)]) == {}


def test_unconfigured_kind_is_not_duplicate(tmp_path: Path) -> None:
    dubbed = planted("b", 1) | {"sound_hash": planted("x", 3)["sound_hash"]}
    rows = [planted("a", 1), dubbed]
    corpus = corpus_of(tmp_path / "corpus", rows)
    assert find_duplicates(corpus, verdicts(rows), DuplicateConfig())["kind"].to_pylist() == [
        "kept",
        "same-picture",
    ]
    assert len(find_duplicates(corpus, verdicts(rows), DuplicateConfig(kinds=["copy", "same-sound"]))) == 0


def test_tone_silence_and_still_pictures_make_no_duplicates(tmp_path: Path) -> None:
    blank = [
        planted(f"c{i}", i) | {"video_hash": [0] * 17, "sound_hash": [627964279] * 19 if i % 2 else []}
        for i in range(6)
    ]
    assert (
        groups(tmp_path / "corpus", [*blank, planted("x", 9) | {"video_hash": None, "sound_hash": None}])
        == {}
    )


@given(
    st.lists(st.integers(0, 1), min_size=3, max_size=5), st.lists(st.integers(1, 3), min_size=5, max_size=5)
)
@settings(max_examples=5, deadline=None)
def test_later_worse_copy_never_replaces_kept_clip(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int], sizes: list[int]
) -> None:
    """Of equal clips the one kept before stays kept, even if the new clip_id sorts first."""
    corpus = Corpus.create(tmp_path_factory.mktemp("grown") / "corpus")
    config = DuplicateConfig()
    known: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    for number, seed in enumerate(seeds):
        row = planted(f"{9 - number}", seed, width_px=640.0 * sizes[number])
        corpus.upsert("clips", [row])
        known.append(row)
        table = find_duplicates(corpus, verdicts(known), config)
        lost = {r["clip_id"] for r in table.to_pylist() if r["clip_id"] != r["kept_clip"]}
        for name, width in before.items():
            if name in lost:
                newcomer_wins = (
                    row["video_hash"] == planted("", seed)["video_hash"] and row["width_px"] > width
                )
                assert newcomer_wins
        before = {r["clip_id"]: r["width_px"] for r in known if r["clip_id"] not in lost}
        corpus.upsert("decisions", [{"clip_id": r["clip_id"], "kept": r["clip_id"] in before} for r in known])
        assert len(before) == len(set(seeds[: number + 1]))


def test_rejected_best_copy_leaves_next_best(
    make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    hashes = planted("", 1)
    prints = {name: hashes[name] for name in ("video_hash", "sound_hash")}
    rows = [
        make_clip("s0", 0.0, "a", width_px=1280.0, luma=250.0, **prints),  # the largest, but washed out
        make_clip("s1", 0.0, "b", width_px=960.0, **prints),
        make_clip("s2", 0.0, "c", **prints),
        make_clip("s3", 0.0, "d"),
    ]
    corpus = make_corpus(rows)
    summary = decide(corpus, load_policy("default"))
    reasons = {row["clip_id"]: row["reason"] for row in corpus.read("decisions").to_pylist()}
    assert [reasons[row["clip_id"]] for row in rows] == ["luma", "", "duplicate", ""]
    assert summary.reasons == {"luma": 1, "duplicate": 1}
    assert not decide(corpus, load_policy("default")).written
    assert decide(corpus, load_policy("default"), duplicates=DuplicateConfig(enabled=False)).reasons == {
        "luma": 1
    }


def test_duplicates_among_clips_that_all_fail_the_policy(
    make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    prints = {name: planted("", 1)[name] for name in ("video_hash", "sound_hash")}
    corpus = make_corpus([make_clip(f"s{i}", 0.0, "a", luma=250.0, **prints) for i in range(2)])
    assert decide(corpus, load_policy("default")).reasons == {"luma": 2}


def test_pairs_are_stored_per_version_of_clips_table(tmp_path: Path) -> None:
    rows = [planted("a", 1), planted("b", 1)]
    corpus = corpus_of(tmp_path / "corpus", rows)
    assert len(find_duplicates(corpus, verdicts(rows), DuplicateConfig())) == 2
    store = corpus.root / "duplicates" / "pairs.npz"
    written = store.stat().st_mtime_ns
    assert len(find_duplicates(corpus, verdicts(rows, rejected=("a",)), DuplicateConfig(kinds=["copy"]))) == 0
    assert store.stat().st_mtime_ns == written
    corpus.upsert("clips", [planted("c", 1)])
    assert len(find_duplicates(corpus, verdicts([*rows, planted("c", 1)]), DuplicateConfig())) == 3
    assert store.stat().st_mtime_ns != written
