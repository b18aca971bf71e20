"""Report page in Chromium: thresholds move by mouse, touch and keys and count like `--what-if`; words follow
the video.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from browser import Browser, chromium
from made_signals import varied_clips

from uniavgen.curation.config import DuplicateConfig, ReportConfig, SplitConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import Policy, load_policy, parse_policy
from uniavgen.curation.policy.verdicts import compute_funnel, judge
from uniavgen.curation.policy.what_if import clips_for, what_if
from uniavgen.curation.report.comparison import other_policy
from uniavgen.curation.report.page import write_report
from uniavgen.curation.report.serve import ReportServer
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.timing import VIDEO_FPS

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
CLIPS = 160
SNR_MIN = ".handle.min[aria-label^=snr]"
LINES = "document.querySelectorAll('[data-requirement]')"
"""Line of every rule, with its check box."""

SHIFTS = """new Promise(done => {
  setTimeout(() => done(0), 300);
  const sum = list => done(list.getEntries().reduce((all, entry) => all + entry.value, 0));
  new PerformanceObserver(sum).observe({ type: "layout-shift", buffered: true });
})"""
"""Cumulative layout shift since the page was opened (web.dev: good below 0.1)."""

WATCH = """new Promise(done => {
  const card = document.querySelector('[data-list=kept] .clip');
  const video = card.querySelector('video'), seen = [];
  const look = () => {
    const words = [...card.querySelectorAll('.words span')];
    const on = words.findIndex(word => word.classList.contains('on'));
    const outline = card.querySelector('polygon').getAttribute('points');
    if (!video.seeking) seen.push([video.currentTime, on, outline]);
    video.ended || seen.length > 400 ? done(seen) : requestAnimationFrame(() => setTimeout(look));
  };
  look();
})"""
"""At every frame until the end: video time, index of the lit word (-1: none), face outline."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_clip: Make, clip_media: dict[str, bytes]) -> Corpus:
    """Clips with varied signals and media of 2 s each, decided and reported."""
    made = Corpus.create(tmp_path_factory.mktemp("page") / "corpus")
    rows = varied_clips(make_clip, CLIPS)
    made.upsert("clips", rows)
    for row in rows:
        for extension, data in clip_media.items():
            path = made.media_path(row["clip_id"], extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    decide(made, load_policy("default"))
    write_report(made, ReportConfig(source_pages=2))
    return made


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(corpus: Corpus, tab: Browser) -> Iterator[Browser]:
    """The page, newly opened. No script may fail, and no network request may be made."""
    tab.open(corpus.root / "report" / "index.html")
    yield tab
    assert tab.errors == []
    asked = tab.read("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in asked if not name.startswith(("file:", "data:", "blob:"))] == []


def shown(page: Browser) -> tuple[int, float]:
    """Clips and hours that the page shows as kept, after its update."""
    page.read("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    clips, seconds = page.read(
        "(({clips, seconds}) => [clips, seconds])(document.getElementById('kept-now').dataset)"
    )
    return round(float(clips)), float(seconds) / 3600


def kept_by(corpus: Corpus, policy: Policy) -> tuple[int, Any]:
    last = compute_funnel(clips_for(corpus, policy), policy)[-1]
    return last.clips_in - last.failed_first, pytest.approx(last.hours_in - last.hours_failed_first, rel=1e-5)


def answered(corpus: Corpus, *changes: str) -> tuple[int, Any]:
    after = what_if(corpus, load_policy("default"), changes).after
    return after.clips, pytest.approx(after.hours, rel=1e-5)


def value_of(page: Browser, handle: str) -> float:
    return float(page.read(f"document.querySelector('{handle}').getAttribute('aria-valuenow')"))


def test_dragged_threshold_gives_yield_of_what_if(page: Browser, corpus: Corpus) -> None:
    assert shown(page) == answered(corpus)
    height = page.read("document.documentElement.scrollHeight")
    for by_px in (60, 35, -80):
        page.drag(SNR_MIN, by_px)
        assert value_of(page, SNR_MIN) != 8
        assert shown(page) == answered(corpus, f"snr={value_of(page, SNR_MIN)}")
    page.drag(".handle.max[aria-label^=sync]", -40)
    bound = value_of(page, ".handle.max[aria-label^=sync]")
    assert 0 < bound < 160
    assert shown(page) == answered(corpus, f"snr={value_of(page, SNR_MIN)}", f"sync.max={bound}")
    assert page.read("document.documentElement.scrollHeight") == height, "the layout stays where it is"
    assert page.read(SHIFTS) < 0.02
    page.click("#reset")
    assert shown(page) == answered(corpus)
    assert value_of(page, SNR_MIN) == 8


def test_keyboard_moves_threshold_and_bars(page: Browser, corpus: Corpus) -> None:
    page.middle(SNR_MIN)
    page.wait("document.querySelector('[data-plot=snr_db].js-plotly-plot')")
    traces = "document.querySelector('[data-plot=snr_db]').data"
    bars = f"{traces}.map(trace => trace.y.reduce((sum, n) => sum + n, 0))"
    before = page.read(bars)
    page.read(f"document.querySelector('{SNR_MIN}').focus()")
    page.press("ArrowRight", 12)
    raised = value_of(page, SNR_MIN)
    assert raised > 8
    assert shown(page) == answered(corpus, f"snr={raised}")
    page.wait(f"{bars}[0] < {before[0]}")
    assert sum(page.read(bars)) == pytest.approx(sum(before)), (
        "bars keep their height and change their colour"
    )
    page.press("PageUp")
    assert value_of(page, SNR_MIN) > raised
    page.press("Home")
    assert shown(page) == answered(corpus, f"snr={value_of(page, SNR_MIN)}")
    page.press("Escape")
    assert value_of(page, SNR_MIN) == 8
    assert (
        page.read(f"document.querySelector('{SNR_MIN}').getAttribute('aria-valuetext')")
        == "8 decibels; policy: 8"
    )


def test_policy_written_by_page_keeps_shown_yield(page: Browser, corpus: Corpus) -> None:
    page.drag(SNR_MIN, -30)
    page.drag(".handle.max[aria-label^=face_yaw]", -40)
    for rule in ("word_score", "language"):
        line = f"[...{LINES}].find(line => line.querySelector('.mono').textContent === '{rule}')"
        page.read(f"{line}.querySelector('input').click()")
    kept = shown(page)
    policy = parse_policy(page.read("document.getElementById('yaml').textContent"), where="the page")
    assert len(policy.rules) == len(load_policy("default").rules) - 2
    assert kept == kept_by(corpus, policy) != answered(corpus)
    command = page.read("document.getElementById('command').textContent").replace("\\\n", "").split()
    assert command[:2] == ["uniavgen", "curate"]
    assert (
        what_if(corpus, load_policy("default"), command[command.index("--what-if") + 1 :: 2]).after.clips > 0
    )


def test_rule_shows_clips_rejected_in_total_and_alone(page: Browser, corpus: Corpus) -> None:
    lines = page.read(
        f"[...{LINES}].map(line => ['.mono', 'small'].map(part => line.querySelector(part).textContent))"
    )
    policy = load_policy("default")
    failing = {row.rule: row.failed for row in compute_funnel(clips_for(corpus, policy), policy)}
    now = answered(corpus)[0]
    for name, text in lines:
        without = Policy("", tuple(rule for rule in policy.rules if rule.name != name))
        alone = kept_by(corpus, without)[0] - now if failing[name] else 0
        assert text == f"rejects {failing[name]}, {alone} of them alone"
    assert {name for name, _ in lines} == {rule.name for rule in policy.rules}


def test_words_and_face_outline_follow_video(page: Browser, corpus: Corpus) -> None:
    card = "[data-list=kept] .clip"
    page.middle(card)
    page.wait(f"document.querySelector('{card} video').readyState >= 2")
    name = page.read(f"document.querySelector('{card}').dataset.clip")
    words = next(row["words"] for row in corpus.read("clips").to_pylist() if row["clip_id"] == name)
    oval = FaceTrack.from_bytes(corpus.media_path(name, "face.npz").read_bytes()).oval
    page.click(f"{card} .words span:nth-child(2)")
    seen = page.read(WATCH)
    assert seen[0][0] >= words[1]["start_s"], "a click on a word begins there"
    assert seen[-1][0] > words[2]["end_s"]
    assert {on for _, on, _ in seen} >= {1, 2, -1}
    for now, on, points in seen:
        right = {i for i, word in enumerate(words) if word["start_s"] - 0.1 <= now <= word["end_s"] + 0.1} | {
            -1
        }
        assert on in right
        centre = np.mean([[float(x) for x in point.split(",")] for point in points.split()], axis=0)
        frame = min(len(oval) - 1, int(now * VIDEO_FPS))
        near = oval[max(0, frame - 2) : frame + 3].mean(axis=1)
        assert np.abs(near - centre).max(axis=1).min() < 0.01


def test_filter_shows_rejected_clips_and_readings_of_kept(page: Browser, corpus: Corpus) -> None:
    visible = "[...document.querySelectorAll('[data-list={}] .clip:not([hidden])')]"
    assert page.read(visible.format("rejected") + ".length") == 6
    reasons = ".map(card => [card.dataset.clip, card.querySelector('.why').textContent])"
    page.click("[data-filter=snr]")
    rejected = page.read(visible.format("rejected") + reasons)
    kept = page.read(visible.format("kept") + reasons)
    values = {row["clip_id"]: row for row in corpus.read("clips").to_pylist()}
    assert rejected
    assert all(values[name]["snr_db"] < 8 for name, _ in rejected)
    assert all(f"snr_db {values[name]['snr_db']:.1f}".rstrip("0").rstrip(".") in text for name, text in kept)
    assert all("required: at least 8 decibels" in text for _, text in kept)
    page.click("[data-list=kept] .unfold")
    assert page.read(visible.format("kept") + ".length") == 12


@pytest.mark.parametrize("width", [390, 320])
def test_phone_width_has_no_horizontal_scroll_and_touch_moves_threshold(
    corpus: Corpus, tab: Browser, width: int
) -> None:
    tab.open(corpus.root / "report" / "index.html", width=width, height=844, touch=True)
    assert tab.read("document.documentElement.scrollWidth") == width
    tab.swipe(SNR_MIN, 50)
    assert value_of(tab, SNR_MIN) > 8
    assert shown(tab) == answered(corpus, f"snr={value_of(tab, SNR_MIN)}")


def test_page_follows_dark_mode(corpus: Corpus, tab: Browser) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    background = color + r".match(/\d+/g).reduce((sum, part) => sum + Number(part), 0)"
    brightness = {}
    for dark in (False, True):
        tab.open(corpus.root / "report" / "index.html", dark=dark)
        brightness[dark] = tab.read(background)
    assert brightness[True] < 150
    assert brightness[False] > 650


FOUND = "[...document.querySelectorAll('#find-clips .clip')]"


def choose(page: Browser, name: str, value: str) -> None:
    page.read(
        f"(() => {{ const box = document.getElementById('find-{name}'); box.value = {json.dumps(value)};"
        "box.dispatchEvent(new Event(box.type === 'search' ? 'input' : 'change')); })()"
    )
    page.read("new Promise(done => setTimeout(done, 250))")


def ids_found(page: Browser) -> list[str]:
    """Ids of all clips that match, in order."""
    ids: list[str] = page.read("found.rows.map(row => row.id)")
    return ids


def test_clips_are_found_by_words_filters_and_sorted_by_signal(page: Browser, corpus: Corpus) -> None:
    clips = {row["clip_id"]: row for row in corpus.read("clips").to_pylist()}
    assert set(ids_found(page)) == set(clips)
    one = next(iter(clips))
    choose(page, "text", one[:12])
    assert ids_found(page) == [one]
    choose(page, "text", "")
    choose(page, "language", "de")
    choose(page, "sort", "snr_db")
    choose(page, "order", "up")
    german = [clips[clip]["snr_db"] for clip in ids_found(page)]
    assert len(german) == sum(row["language"] == "de" for row in clips.values())
    measured = [value for value in german if value is not None]
    assert measured == sorted(measured)
    assert page.read(f"{FOUND}.length") == 12


def test_clips_that_change_side_are_listed_and_play(page: Browser, corpus: Corpus) -> None:
    kept = {row["clip_id"] for row in corpus.read("decisions").to_pylist() if row["kept"]}
    snr = {row["clip_id"]: row["snr_db"] for row in corpus.read("clips").to_pylist()}
    page.drag(SNR_MIN, 60)
    bound = value_of(page, SNR_MIN)
    page.click("#show-changed")
    changed = ids_found(page)
    assert set(changed) == {clip for clip in kept if snr[clip] < bound}
    assert changed
    page.read("document.querySelector('.handle.min[aria-label^=snr]').focus()")
    page.press("ArrowRight", 3)
    page.wait(f"found.rows.length > {len(changed)}")
    assert set(ids_found(page)) == {clip for clip in kept if snr[clip] < value_of(page, SNR_MIN)}
    video = "document.querySelector('#find-clips video')"
    page.wait(f"{video}.readyState >= 2")
    assert (
        page.read(
            f"{video}.play().then(() => new Promise(r => setTimeout(() => r({video}.currentTime), 500)))"
        )
        > 0
    )


def test_decisions_by_hand_are_part_of_the_policy_file(page: Browser, corpus: Corpus) -> None:
    decisions = {row["clip_id"]: row["kept"] for row in corpus.read("decisions").to_pylist()}
    choose(page, "decision", "kept")
    rejected = ids_found(page)[0]
    choose(page, "decision", "rejected")
    kept = ids_found(page)[0]
    ask = "document.querySelector('#find-clips .ask')"
    page.click("#find-clips .actions button[title^=keep]")
    page.read(f"{ask}.lastElementChild.click()")
    assert page.read("hand.size") == 0, "a decision has a name and a reason"
    page.read(f"[...{ask}.querySelectorAll('input')].forEach((box, i) => box.value = ['anna', 'seen it'][i])")
    page.read(f"{ask}.lastElementChild.click()")
    page.read(f"decide('{rejected}', 'reject', 'seen it')")
    policy = parse_policy(page.read("document.getElementById('yaml').textContent"), where="the page")
    assert [(d.clip, d.who, d.why) for d in policy.keep] == [(kept, "anna", "seen it")]
    assert [d.clip for d in policy.reject] == [rejected]
    after = {row["clip_id"]: row["kept"] for row in judge(clips_for(corpus, policy), policy).to_pylist()}
    assert {clip for clip in after if after[clip] != decisions[clip]} == {rejected, kept}
    assert shown(page)[0] == sum(decisions.values())
    page.read("localStorage.clear()")


def test_cards_have_a_clip_id_and_a_command_with_the_full_path(page: Browser, corpus: Corpus) -> None:
    clip = ids_found(page)[0]
    assert page.read(f"document.querySelector('[data-actions=\"{clip}\"] code').textContent") == clip
    command = shlex.split(page.read(f"explainCommand('{clip}')"))
    assert command == ["uniavgen", "curate", "--corpus", str(corpus.root.resolve()), "--explain", clip]


def test_clips_kept_by_one_side_only_are_found(
    tmp_path_factory: pytest.TempPathFactory, make_clip: Make, tab: Browser
) -> None:
    made = Corpus.create(tmp_path_factory.mktemp("compared") / "corpus")
    made.upsert("clips", varied_clips(make_clip, 60))
    decide(made, load_policy("default"))
    other = other_policy(made, load_policy("fine-tune"), SplitConfig(), DuplicateConfig())
    tab.open(write_report(made, ReportConfig(source_pages=0), other=other).page)
    kept = {row["clip_id"] for row in made.read("decisions").to_pylist() if row["kept"]}
    kept_there = {row["clip_id"] for row in other.decisions.to_pylist() if row["kept"]}
    choose(tab, "decision", "only-here")
    assert set(ids_found(tab)) == kept - kept_there != set()
    choose(tab, "decision", "only-there")
    assert set(ids_found(tab)) == kept_there - kept
    assert tab.errors == []


def test_served_page_finds_changes_outside_its_own_list(
    tmp_path_factory: pytest.TempPathFactory, make_clip: Make, tab: Browser
) -> None:
    made = Corpus.create(tmp_path_factory.mktemp("served") / "corpus")
    made.upsert("clips", varied_clips(make_clip, 80))
    decide(made, load_policy("default"))
    write_report(made, ReportConfig(source_pages=0, max_listed=10))
    with ReportServer(made) as server:
        tab.open_url(server.url)
        assert tab.read("found.total") == 80
        tab.drag(SNR_MIN, 60)
        bound = value_of(tab, SNR_MIN)
        tab.click("#show-changed")
        answer = what_if(made, load_policy("default"), [f"snr.min={bound}"])
        lost = answer.before.clips - answer.after.clips
        tab.wait(f"found.total === {lost}")
        assert lost > 10
        choose(tab, "decision", "hand")
        assert ids_found(tab) == []
    assert tab.errors == []
