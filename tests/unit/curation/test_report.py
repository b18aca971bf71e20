"""The page: every reason is on it, its clips play, it needs no network, and its scripts run in a real browser."""

import base64
import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from curation.config import ReportConfig
from curation.decisions import decide
from curation.policy import load_policy
from curation.previews import oval_data, preview, wave_bars
from curation.report import write_report
from shards.corpus import SIGNALS, Corpus
from shards.errors import UserError
from shards.sample import FaceTrack, decode_video

Make = Callable[..., Any]


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Two voices that are kept, and one clip for each of five reasons; one of them has no media."""
    good = [make_clip(f"src-{person}", 2.0 * i, person) for person in "ab" for i in range(3)]
    defects: list[dict[str, Any]] = [
        {"language": "ru"},
        {"face_count": 4.0},
        {"snr_db": None},
        {"sync_offset_ms": 400.0, "duration_s": 6.0},
        {"transcript": "", "words": []},
    ]
    bad = [make_clip("src-bad <b>", 2.0 * i, "c", **defect) for i, defect in enumerate(defects)]
    made: Corpus = make_corpus([*good, *bad])
    made.upsert("failures", [{"uri": "/videos/a&b.mp4", "stage": "probe", "error_type": "no-video", "message": "no <video>"}])
    for extension in ("mp4", "flac", "face.npz"):
        made.media_path(bad[-1]["clip_id"], extension).unlink()
    decide(made, load_policy("default"))
    return made


def test_the_page_tells_every_reason_rule_signal_source_and_failure(corpus: Corpus) -> None:
    summary = write_report(corpus)
    page = summary.page.read_text()
    told = html.unescape(re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    for reason in set(corpus.read("decisions")["reason"].to_pylist()) - {""}:
        assert f'Rejected: <span class="mono">{reason}</span>' in told
    for rule in load_policy("default").rules:
        assert rule.says in told
    for name in [*SIGNALS, "src-a.mp4", "src-bad <b>.mp4", "a&b.mp4", "no <video>", "no media for this clip"]:
        assert name in told
    assert (summary.examples, summary.reasons) == (11, 5)
    assert "<b>.mp4" not in page


def test_the_page_needs_nothing_but_its_folder(corpus: Corpus) -> None:
    page = write_report(corpus).page
    body = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.S)
    links = [unquote(html.unescape(link)) for link in re.findall(r'(?:src|href)="([^"#]*)', body)]
    assert sum(link.startswith("clips/") for link in links) == 10
    assert sum(link.startswith("sources/") for link in links) == 11 + 3, "from every example and from the list"
    assert all((page.parent / link).is_file() for link in links)


def test_examples_are_few_and_previews_of_others_are_deleted(corpus: Corpus) -> None:
    write_report(corpus)
    summary = write_report(corpus, ReportConfig(max_kept=2, per_reason=0))
    assert summary.examples == 2
    assert len(list((corpus.root / "report" / "clips").iterdir())) == 2
    decisions = corpus.query("SELECT speaker, clip_id FROM clips")
    speakers = dict(zip(decisions["clip_id"].to_pylist(), decisions["speaker"].to_pylist(), strict=True))
    assert len({speakers[path.stem] for path in (corpus.root / "report" / "clips").iterdir()}) == 2


def test_the_same_tables_give_the_same_page(corpus: Corpus) -> None:
    first = write_report(corpus).page.read_bytes()
    shutil.rmtree(corpus.root / "report")
    assert write_report(corpus).page.read_bytes() == first


def test_a_preview_keeps_the_pictures_bytes_and_adds_the_sound(corpus: Corpus, tmp_path: Path) -> None:
    import av

    clip = corpus.read("clips")["clip_id"][0].as_py()
    made = preview(corpus, clip, tmp_path)
    assert made is not None
    assert (made["width"], made["height"], len(made["wave"])) == (128, 96, 160)
    original = corpus.media_path(clip, "mp4").read_bytes()
    assert np.array_equal(decode_video((tmp_path / made["file"]).read_bytes()), decode_video(original))
    with av.open(str(tmp_path / made["file"]), mode="r") as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) == pytest.approx(2.0, abs=0.06)  # type: ignore[operator]


def test_a_preview_without_readable_media_is_none_and_leaves_no_file(corpus: Corpus, tmp_path: Path) -> None:
    clip = corpus.read("clips")["clip_id"][0].as_py()
    corpus.media_path(clip, "mp4").write_bytes(b"no movie")
    assert preview(corpus, clip, tmp_path) is None
    assert preview(corpus, "00", tmp_path) is None
    assert list(tmp_path.glob("*.mp4")) == []


def test_the_waveform_shows_where_the_sound_is(tmp_path: Path) -> None:
    import soundfile

    sound = np.zeros(24_000, np.float32)
    sound[12_000:18_000] = 0.25
    soundfile.write(tmp_path / "s.flac", sound, 24_000)
    bars = wave_bars(tmp_path / "s.flac", bars=8)
    assert bars == [0, 0, 0, 0, 100, 100, 0, 0]


def test_ovals_come_back_from_what_the_page_gets() -> None:
    oval = np.random.default_rng(0).random((5, 36, 2)).astype(np.float32)
    score = np.array([1, 1, 0, 1, 1], np.float32)
    told = oval_data(FaceTrack(oval, np.zeros((5, 4), np.float32), score))
    read = np.frombuffer(base64.b64decode(told["data"]), "<u2").reshape(5, told["points"], 2)
    assert np.allclose(read[score > 0] / 65534, oval[score > 0], atol=1e-5)
    assert (read[2] == 65535).all()


def test_histograms_count_every_measured_clip_and_carry_the_thresholds(corpus: Corpus) -> None:
    import json

    page = write_report(corpus, ReportConfig(bins=7)).page.read_text()
    found = re.search(r"const histograms = (.*);\n", page)
    assert found
    histograms = {h["name"]: h for h in json.loads(found.group(1))}
    for h in histograms.values():
        assert sum(h["kept"]) + sum(h["rejected"]) == h["count"] == 11 - h["missing"]
        assert sum(h["kept"]) == (6 if h["count"] else 0)
    assert histograms["snr_db"]["missing"] == 1
    assert [bound["value"] for bound in histograms["duration_s"]["bounds"]] == [2.0, 10.0]


def test_an_undecided_corpus_says_what_to_do(make_corpus: Make, make_clip: Make) -> None:
    with pytest.raises(UserError, match="uniavgen curate"):
        write_report(make_corpus([make_clip("s", 0.0, "a")]))


@pytest.mark.slow
def test_the_scripts_run_in_chromium(corpus: Corpus, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on PATH")
    page = write_report(corpus).page
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,9000", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="yes"' in dom
    assert dom.count("js-plotly-plot") >= len(SIGNALS) - 1
    assert len(re.findall(r'<polygon points="0\.', dom)) == 10
