"""Make the pictures of README.md from a corpus: `python docs/images/make_images.py demo-output/corpus`.

`report.png` is a screenshot of the report page (needs Chromium on PATH). `sample.png` draws one sample.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import uniavgen
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 8
SIDE = 168
WIDTH = PICTURES * SIDE
WAVE_HEIGHT, WORD_HEIGHT, TITLE_HEIGHT = 72, 30, 34
INK, ACCENT, PALE = (20, 30, 45), (29, 158, 117), (118, 132, 150)


def draw_sample(sample: uniavgen.Sample) -> Image.Image:
    """Frames with the face outline, the waveform, and each word at its time."""
    frames, waveform = sample.frames(), sample.waveform()
    seconds = len(frames) / VIDEO_FPS
    canvas = Image.new("RGB", (WIDTH, TITLE_HEIGHT + SIDE + WAVE_HEIGHT + 2 * WORD_HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(16), ImageFont.load_default(14)
    meta = sample.meta
    parts = (
        f"{sample.key}.mp4",
        f"{len(frames)} frames, {VIDEO_FPS} fps",
        ".flac",
        f"{SAMPLE_RATE // 1000} kHz",
    )
    title = "   ".join([*parts, ".face.npz", ".json"])
    draw.text((8, 8), title, INK, font)
    offset = f"lip-sync offset {meta.signals['sync_offset_ms']:.0f} ms, SNR {meta.signals['snr_db']:.0f} dB"
    draw.text((WIDTH - 8, 8), f"{meta.language}, {offset}", PALE, font, anchor="ra")
    for column in range(PICTURES):
        index = round((column + 0.5) * len(frames) / PICTURES)
        picture = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        outline = [tuple(point) for point in sample.face.oval[index] * SIDE]
        ImageDraw.Draw(picture).line([*outline, outline[0]], ACCENT, 2, joint="curve")
        canvas.paste(picture, (column * SIDE, TITLE_HEIGHT))
    middle = TITLE_HEIGHT + SIDE + WAVE_HEIGHT // 2
    for x, part in enumerate(np.array_split(waveform, WIDTH)):
        half = float(np.abs(part).max() / np.abs(waveform).max()) * (WAVE_HEIGHT / 2 - 4)
        draw.line([(x, middle - half), (x, middle + half)], ACCENT)
    top = TITLE_HEIGHT + SIDE + WAVE_HEIGHT
    for number, word in enumerate(meta.words):
        x, y = word.start_s / seconds * WIDTH, top + number % 2 * WORD_HEIGHT
        draw.line([(x, top - 6), (x, y + 6)], PALE)
        draw.text((x + 3, y + 2), word.text, INK, small)
    return canvas


def draw_report(page: Path) -> Image.Image:
    """The part of the report page that shows kept and rejected clips."""
    sys.path.insert(0, str(ROOT / "tests" / "factories"))
    from browser import chromium

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        chromium(Path(folder) / "profile") as browser,
    ):
        browser.open(page.absolute(), 1400, 770)
        browser.read("document.querySelector('#clips').scrollIntoView()")
        browser.wait("[...document.images].every(image => image.complete)")
        target = Path(folder) / "page.png"
        browser.picture(target)
        with Image.open(target) as picture:
            return picture.convert("RGB").resize((1120, 616), Image.Resampling.LANCZOS)


def main(corpus_path: str) -> None:
    """Write both pictures beside this file, as PNG with a palette."""
    corpus = uniavgen.Corpus(corpus_path)
    sample = corpus.sample(split="train")
    for name, picture in {
        "sample": draw_sample(sample),
        "report": draw_report(corpus.path / "report" / "index.html"),
    }.items():
        path = Path(__file__).with_name(f"{name}.png")
        picture.quantize(255).save(path, optimize=True)
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
