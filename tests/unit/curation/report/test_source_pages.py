"""Source pages: complete at any length, few, and drawn in a browser."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from hypothesis import given
from hypothesis import strategies as st
from made_talks import talk, talk_clips

from uniavgen.curation.config import ReportConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.curation.report.page import write_report
from uniavgen.curation.report.source_pages import interleave
from uniavgen.shards.corpus.signals import SIGNALS, SYNC_CURVE_STEP_MS
from uniavgen.shards.corpus.tables import Corpus

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory, make_clip: Make, clip_media: dict[str, bytes]) -> Corpus:
    """A dialogue of 30 s, a monologue of 90 s, and an hour with nine speakers and without media; reported."""
    lengths = {"short": (30.0, 2), "single <i>": (90.0, 1), "hour": (3600.0, 9)}
    rows = {name: talk(name, seconds, speakers) for name, (seconds, speakers) in lengths.items()}
    clips = [clip for row in rows.values() for clip in talk_clips(row, make_clip)]
    corpus = Corpus.create(tmp_path_factory.mktemp("talks") / "corpus")
    about = {"width": 640, "height": 480, "fps": 25.0}
    corpus.upsert("sources", [{"uri": f"/videos/{name}.mp4"} | about | row for name, row in rows.items()])
    corpus.upsert("clips", clips)
    for clip in clips:
        for extension, data in clip_media.items() if clip["source_id"] != "hour" else ():
            path = corpus.media_path(clip["clip_id"], extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    decide(corpus, load_policy("default"))
    write_report(corpus)
    return corpus


def page_of(corpus: Corpus, source: str) -> str:
    return (corpus.root / "report" / "sources" / f"{source}.html").read_text()


def drawn(page: str) -> dict[str, Any]:
    """The data of the page's script."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    assert match
    timeline: dict[str, Any] = json.loads(match.group(1))["timeline"]
    return timeline


def test_timeline_contains_every_row_of_tables(talks: Corpus) -> None:
    for source in talks.read("sources").to_pylist():
        data = drawn(page_of(talks, source["source_id"]))
        names = [speaker["name"] for speaker in data["speakers"]]
        assert [(names[s], a, b) for s, a, b in data["turns"]] == [
            (t["label"], pytest.approx(t["start_s"], abs=0.006), pytest.approx(t["end_s"], abs=0.006))
            for t in source["turns"]
        ]
        assert [(w[0], names[w[3]]) for w in data["words"]] == [
            (w["text"], w["speaker"]) for w in source["words"]
        ]
        assert (len(data["shots"]), len(data["tracks"])) == (len(source["shots"]), len(source["tracks"]))
        decided = talks.query(
            f"""SELECT clip_id, kept, reason FROM clips JOIN decisions USING (clip_id)
            WHERE source_id = '{source["source_id"]}'"""
        )
        shown = {(clip["clip_id"], clip["kept"], clip["reason"]) for clip in data["clips"]}
        assert shown == {tuple(row.values()) for row in decided.to_pylist()}


def test_clip_has_signals_and_sync_curve(talks: Corpus) -> None:
    rows = {row["clip_id"]: row for row in talks.read("clips").to_pylist()}
    for clip in drawn(page_of(talks, "short"))["clips"]:
        row = rows[clip["clip_id"]]
        assert clip["signals"] == [
            None if row[n] is None else pytest.approx(row[n], rel=1e-3) for n in SIGNALS
        ]
        peak = max(range(len(clip["curve"])), key=clip["curve"].__getitem__)
        assert (peak - len(clip["curve"]) // 2) * SYNC_CURVE_STEP_MS == pytest.approx(
            row["sync_offset_ms"], abs=11
        )


def test_page_text_is_readable_and_file_names_escaped(talks: Corpus) -> None:
    page = page_of(talks, "single <i>")
    text = html.unescape(re.sub(r"<script.*?</script>", "", page, flags=re.S))
    assert "<i>.mp4" not in page.replace("&lt;i&gt;", "")
    for words in ("single <i>.mp4", "1:30.0", "voice 00", "snr", "people often forget"):
        assert words in text


def test_clip_plays_only_with_preview(talks: Corpus) -> None:
    made = {path.stem for path in (talks.root / "report" / "clips").glob("*.mp4")}
    clips = [
        clip for source in ("short", "single <i>", "hour") for clip in drawn(page_of(talks, source))["clips"]
    ]
    assert made
    assert {clip["clip_id"] for clip in clips if clip["plays"]} == made


def test_pages_are_limited_and_old_ones_deleted(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip(name, 1.0, name) for name in "abc"])
    corpus.upsert("sources", [{"source_id": "c", "uri": "/v/c.mp4", "duration_s": 900.0}])
    decide(corpus, load_policy("default"))
    folder = corpus.root / "report" / "sources"
    write_report(corpus)
    assert {path.stem for path in folder.iterdir()} == {"a", "b", "c"}
    write_report(corpus, ReportConfig(source_pages=2, max_kept=1, per_reason=0))
    assert len(list(folder.iterdir())) == 2
    assert (folder / "c.html").is_file(), "the longest source has one"
    write_report(corpus, ReportConfig(source_pages=0))
    assert list(folder.iterdir()) == []
    assert "sources/" not in re.sub(
        r"<script>.*?</script>", "", (folder.parent / "index.html").read_text(), flags=re.S
    )


def test_page_of_hour_long_source_is_under_a_megabyte(talks: Corpus) -> None:
    assert len(page_of(talks, "hour")) < 1_000_000


def test_source_of_older_version_has_page(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip("old", 1.0, "a")])
    corpus.upsert("sources", [{"source_id": "old", "uri": "/v/old.mp4", "duration_s": None}])
    decide(corpus, load_policy("default"))
    write_report(corpus)
    data = drawn(page_of(corpus, "old"))
    assert (data["duration"], data["words"], data["tracks"], data["clips"][0]["curve"]) == (3.0, [], [], [])


@given(st.lists(st.lists(st.sampled_from("abcdefgh")), max_size=4), st.integers(0, 10))
def test_interleave_takes_each_name_once(lists: list[list[str]], limit: int) -> None:
    taken = interleave(lists, limit)
    assert len(taken) == len(set(taken)) == min(limit, len({name for names in lists for name in names}))
    firsts = list(dict.fromkeys(names[0] for names in lists if names))
    assert taken[: len(firsts)] == firsts[: len(taken)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["short", "hour"])
def test_timeline_is_drawn_in_chromium(talks: Corpus, source: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on PATH")
    clips = drawn(page_of(talks, source))["clips"]
    late = clips[-1]
    page = (talks.root / "report" / "sources" / f"{source}.html").as_uri() + "#" + late["clip_id"]
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1400", "--virtual-time-budget=4000", "--dump-dom", page]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="yes"' in dom
    assert re.search(r'class="clip (rejected)? ?chosen"', dom), "the clip of the link is chosen and in sight"
    assert f'<span class="meta mono">{late["clip_id"]}</span>' in dom
    assert 'id="curve"' in dom
    assert dom.count('class="known"') + dom.count('class="unknown"') >= 2
    assert len(re.findall(r'class="shot', dom)) <= 60, "only what is in view is drawn"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["short"])
def test_page_is_no_wider_than_a_phone(talks: Corpus, source: str, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as tab:
        tab.open_url((talks.root / "report" / "sources" / f"{source}.html").as_uri(), 400, 800, touch=True)
        assert tab.read("document.documentElement.scrollWidth") == 400
        assert tab.errors == []
