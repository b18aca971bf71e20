"""The report server: searches all clips, plays them in parts, and answers this machine only."""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from made_signals import varied_clips

from uniavgen.curation.config import ReportConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.curation.policy.verdicts import judge
from uniavgen.curation.policy.what_if import clips_for, with_thresholds
from uniavgen.curation.report.page import write_report
from uniavgen.curation.report.serve import HOST, ReportServer
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

CLIPS = 60


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    make_clip: Callable[..., dict[str, Any]],
    clip_media: dict[str, bytes],
) -> Iterator[ReportServer]:
    corpus = Corpus.create(tmp_path_factory.mktemp("served") / "corpus")
    rows = varied_clips(make_clip, CLIPS)
    rows[7]["transcript"] = "A Heron stood in the reeds"
    corpus.upsert("clips", rows)
    for extension, data in clip_media.items():
        path = corpus.media_path(rows[7]["clip_id"], extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    decide(corpus, load_policy("default"))
    write_report(corpus, ReportConfig(max_listed=5))
    with ReportServer(corpus) as running:
        yield running


def get(server: ReportServer, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def search(server: ReportServer, **query: Any) -> dict[str, Any]:
    status, body, _ = get(server, f"/api/clips?{urlencode(query)}")
    assert status == 200
    answer: dict[str, Any] = json.loads(body)
    return answer


def test_page_knows_that_a_server_answers(server: ReportServer) -> None:
    status, body, _ = get(server, "/")
    assert status == 200
    assert b'"server":true' in body
    assert b'"server":false' in (server.folder / "index.html").read_bytes()


def test_search_covers_all_clips_and_not_only_those_of_the_page(server: ReportServer) -> None:
    everything = search(server, limit=200)
    assert everything["total"] == len(everything["id"]) == CLIPS
    assert search(server, text="heron REEDS")["text"] == ["A Heron stood in the reeds"]
    assert search(server, text=everything["id"][3][:9])["id"] == [everything["id"][3]]
    kept = search(server, decision="kept", limit=200)
    assert all(kept["kept"])
    assert kept["total"] + search(server, decision="rejected")["total"] == CLIPS
    loud = search(server, sort="snr_db", order="down", limit=200)["signals"]["snr_db"]
    measured = [value for value in loud if value is not None]
    assert measured == sorted(measured, reverse=True)
    assert loud[len(measured) :] == [None] * (CLIPS - len(measured)), "missing values are last"
    german = search(server, language="de", limit=200)
    assert set(german["language"]) == {"de"}
    first, second = (search(server, limit=10, offset=offset)["id"] for offset in (0, 10))
    assert not set(first) & set(second)
    assert len(search(server, limit=-3)["id"]) == 1
    assert search(server, offset=10**30)["id"] == []


def test_clips_that_change_side_are_those_of_what_if(server: ReportServer) -> None:
    policy = load_policy("default")
    for assignments, dropped in ((["snr.min=25"], ""), (["snr.min=2", "luma.max=90"], ""), ([], "snr luma")):
        moved = with_thresholds(policy, assignments)
        moved = replace(moved, rules=tuple(rule for rule in moved.rules if rule.name not in dropped.split()))
        passes = [
            {row["clip_id"]: row["kept"] for row in judge(clips_for(server.corpus, one), one).to_pylist()}
            for one in (policy, moved)
        ]
        changed = {
            clip: "now passes" if now else "now fails"
            for clip, now in passes[1].items()
            if now != passes[0][clip]
        }
        answer = search(server, decision="changed", set=" ".join(assignments), drop=dropped, limit=200)
        assert changed
        assert dict(zip(answer["id"], answer["now"], strict=True)) == changed
    assert search(server, decision="changed")["total"] == 0
    assert get(server, "/api/clips?decision=changed&set=nothing.min=3")[0] == 400
    every = " ".join(rule.name for rule in policy.rules)
    assert get(server, f"/api/clips?{urlencode({'drop': every})}")[0] == 400
    assert get(server, "/api/clips?decision=sideways")[0] == 400


def test_clip_is_served_with_audio_and_in_parts(server: ReportServer) -> None:
    clip = search(server, text="heron")["id"][0]
    status, body, headers = get(server, f"/media/{clip}.mp4")
    assert (status, headers["Content-Type"]) == (200, "video/mp4")
    part_status, part, part_headers = get(server, f"/media/{clip}.mp4", Range="bytes=10-19")
    assert (part_status, part) == (206, body[10:20])
    assert part_headers["Content-Range"] == f"bytes 10-19/{len(body)}"
    assert get(server, f"/media/{clip}.mp4", Range="bytes=99999999-")[0] == 416


@pytest.mark.parametrize(
    "path", ["/../corpus.json", "/%2e%2e/corpus.json", "/media/nothing.mp4", "/clips/../../corpus.json", "/x"]
)
def test_other_files_are_not_served(server: ReportServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_unknown_signal_is_refused_and_other_host_names_too(server: ReportServer) -> None:
    assert get(server, "/api/clips?sort=1;DROP")[0] == 400
    assert get(server, "/", Host="evil.example")[0] == 403


def test_server_without_report_is_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no report"):
        ReportServer(Corpus.create(tmp_path / "corpus"))
