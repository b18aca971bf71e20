"""`uniavgen export-corpus`: the samples as files that other trainers read, without this package.

One folder serves four layouts, each by its project's documented format:

    OUT/train/CLIP.mp4, CLIP.txt     H.264 and AAC in one file; its caption (diffusion-pipe, SimpleTuner)
    OUT/train/metadata.jsonl         Hugging Face `videofolder`: file_name, text, transcript, speaker, ...
    OUT/train.jsonl, OUT/val.jsonl   LTX-2 trainer: caption, video
    OUT/dataset.toml                 diffusion-pipe: directories and frame buckets
    OUT/multidatabackend.json        SimpleTuner
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.sample import Sample

SPLITS = ("train", "val")
MARKER = "exported.json"
"""File that names the corpus, so that a folder of other files is not written into."""
AAC_BITS = 128_000
FRAME_STEP = 8
"""Frames of a window are a multiple of this, plus one: what the VAEs of LTX-2 (8) and of Wan (4) take."""


@command
def export_corpus(
    settings: Config,
    corpus: CorpusOption,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DIR")],
) -> dict[str, Any]:
    """Write the samples in the layouts of other trainers.

    One folder for LTX-2, diffusion-pipe, SimpleTuner and Hugging Face datasets: a video with its audio, and a
    caption, for each sample, and the files that each of them reads. The same command continues, and removes
    clips that left the shards.

    Example: uniavgen export-corpus --corpus data/corpus --out data/export
    """
    from uniavgen.orchestration.output import console
    from uniavgen.shards.corpus.tables import Corpus

    root = Corpus.open(corpus).root
    _claim(out, root)
    rows: dict[str, list[dict[str, Any]]] = {}
    written = 0
    for split in SPLITS:
        rows[split], new = _write_split(root / "shards", out.absolute(), split)
        written += new
    window = frame_window([row["frames"] for row in rows["train"]])
    write_indexes(out.absolute(), rows, window)
    counts = {split: len(of_split) for split, of_split in rows.items()}
    console.print_line(
        f"{counts['train']} train and {counts['val']} val samples in {out}, {written} of them new; "
        f"window {window} frames"
    )
    return {
        "command": "export-corpus",
        "out": str(out),
        "samples": counts,
        "written": written,
        "window": window,
    }


def _claim(out: Path, root: Path) -> None:
    """Make the folder, or recognise one that this command made. Raises UserError for any other folder."""
    from uniavgen.shards.atomic_files import replace_file
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.write.publish import remember_copy

    marker = out / MARKER
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise UserError(
            "the folder is not empty and holds no export", where=out, hint="name a new or empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(marker, json.dumps({"corpus": str(root)}).encode() + b"\n")
    remember_copy(root, str(out.absolute()))  # `uniavgen forget` names the copies


def _write_split(shards: Path, out: Path, split: str) -> tuple[list[dict[str, Any]], int]:
    """Write the samples of a split that are not there yet, and remove those that left it.

    Returns a row for each sample, and how many were written. A split may have no samples.
    """
    from uniavgen.orchestration.output import console
    from uniavgen.shards.atomic_files import replace_file
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.read.stream import SampleStream

    try:
        stream = SampleStream(str(shards), split)
    except UserError as error:
        if error.kind == "no-shards" or split == "train":
            raise
        return [], 0
    folder = out / split
    folder.mkdir(exist_ok=True)
    keys = set(stream.keys)
    for path in folder.iterdir():
        if path.suffix in (".mp4", ".txt") and path.stem not in keys:
            path.unlink()
    rows, written = [], 0
    with console.progress(f"{split}: samples", len(stream)) as bar:
        for index in range(len(stream)):
            sample = stream.sample_by_index(index)
            video = folder / f"{sample.key}.mp4"
            replace_file(
                video.with_suffix(".txt"), caption_of(sample).encode()
            )  # SimpleTuner takes each line for a caption
            if not video.is_file():
                replace_file(video, with_audio(sample.video, sample.audio))
                written += 1
            rows.append(describe(sample))
            bar.advance()
    return rows, written


def caption_of(sample: Sample) -> str:
    """What is seen, then what is said, in one line: other trainers have one text for a clip."""
    said = " ".join(sample.meta.transcript.split())
    seen = " ".join(sample.meta.caption.split())
    return f"{seen} The person says: “{said}”".strip() if said else seen


def describe(sample: Sample) -> dict[str, Any]:
    """The row of a sample, without its path. `frames` are at 16 frames/s."""
    meta = sample.meta
    return {
        "clip_id": meta.clip_id,
        "text": caption_of(sample),
        "caption": meta.caption,
        "transcript": meta.transcript,
        "language": meta.language,
        "speaker": meta.speaker,
        "seconds": round(meta.end_s - meta.start_s, 3),
        "frames": len(sample.face.oval),
        "source": meta.source_uri,
        "start_s": meta.start_s,
    }


def with_audio(video: bytes, audio: bytes) -> bytes:
    """An .mp4 with the H.264 frames of `video` as they are, and `audio` as AAC. Raises UserError."""
    from uniavgen.ingest.io.ffmpeg import ffmpeg_path
    from uniavgen.shards.errors import UserError

    with tempfile.TemporaryDirectory(prefix="uniavgen-export-") as name:
        folder = Path(name)
        (folder / "video.mp4").write_bytes(video)
        (folder / "audio.flac").write_bytes(audio)
        inputs = ["-i", str(folder / "video.mp4"), "-i", str(folder / "audio.flac")]
        encoding = ["-c:v", "copy", "-c:a", "aac", "-b:a", str(AAC_BITS), "-movflags", "+faststart"]
        done = subprocess.run(
            [
                ffmpeg_path(),
                "-v",
                "error",
                "-y",
                *inputs,
                "-map",
                "0:v",
                "-map",
                "1:a",
                *encoding,
                str(folder / "out.mp4"),
            ],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise UserError("the sample cannot be written as .mp4: " + lines[-1], kind="export-failed")
        return (folder / "out.mp4").read_bytes()


def frame_window(frames: Sequence[int], step: int = FRAME_STEP) -> int:
    """The longest window of `step` * n + 1 frames that half of the samples have; 1 for none."""
    if not frames:
        return 1
    median = sorted(frames)[(len(frames) - 1) // 2]
    return max(1, (median - 1) // step * step + 1)


def write_indexes(out: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], window: int) -> None:
    """Write the files that the trainers read. Paths in them are relative where the format allows it."""
    from uniavgen.shards.atomic_files import replace_file

    for split, of_split in rows.items():
        ltx = [{"caption": row["text"], "video": f"{split}/{row['clip_id']}.mp4"} for row in of_split]
        replace_file(out / f"{split}.jsonl", _lines(ltx))
        if of_split:
            named = [{"file_name": f"{row['clip_id']}.mp4", **row} for row in of_split]
            replace_file(out / split / "metadata.jsonl", _lines(named))
    replace_file(out / "dataset.toml", diffusion_pipe(out, window).encode())
    backends = json.dumps(simple_tuner(out, window), indent=2, ensure_ascii=False) + "\n"
    replace_file(out / "multidatabackend.json", backends.encode())


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "surrogateescape"
    )


def diffusion_pipe(out: Path, window: int) -> str:
    """diffusion-pipe's dataset configuration, as TOML: the train folder with captions beside the videos."""
    path = json.dumps(str(out / "train"), ensure_ascii=False)  # a TOML string has JSON's escapes
    return (
        "# diffusion-pipe: name this file as `dataset` in its configuration\n"
        "resolutions = [512]\nenable_ar_bucket = true\nmin_ar = 0.5\nmax_ar = 2.0\nnum_ar_buckets = 7\n"
        f"frame_buckets = [1, {window}]\n\n[[directory]]\npath = {path}\nnum_repeats = 1\n"
    )


def simple_tuner(out: Path, window: int) -> list[dict[str, Any]]:
    """SimpleTuner's dataloader configuration."""
    return [
        {
            "id": "uniavgen-train",
            "type": "local",
            "dataset_type": "video",
            "instance_data_dir": str(out / "train"),
            "caption_strategy": "textfile",
            "resolution": 512,
            "resolution_type": "pixel_area",
            "crop": False,
            "video": {"num_frames": window, "min_frames": window},
            "audio": {"auto_split": True, "sample_rate": 24_000, "channels": 1},
            "cache_dir_vae": str(out / "cache" / "vae"),
            "metadata_backend": "discovery",
        },
        {
            "id": "uniavgen-text",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(out / "cache" / "text"),
        },
    ]
