"""Shards under attack: killed at every instant, out of room, broken on disk or in the store; nothing is lost."""

import hashlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from uniavgen.shards import store as store_module
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.emilia.index import find_tars
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LATENTS_FOLDER, LATENTS_LOCK, LatentCache, write_manifest
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.write.publish import publish_shards
from uniavgen.shards.write.writer import write_shards

Make = Callable[..., Any]
CONFIG = ShardConfig(max_samples=2)
EVENTS = 76
"""About as many file events as a run has; which ones a run is killed at is drawn from them."""
KILLED = """
import os, signal, sys
from pathlib import Path
import av, deltalake, duckdb, filelock, numpy, pyarrow, webdataset, yaml
import uniavgen.shards.write.writer
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.config import ShardConfig

def work(root, event):
    seen = 0
    def hook(name, details):
        nonlocal seen
        if name in ("open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect") and "/shards" in str(details):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    uniavgen.shards.write.writer.write_shards(Corpus.open(root), ShardConfig(max_samples=2), caption=lambda row: (sys.argv[2], "test"))

for root in Path(sys.argv[1]).iterdir():
    child = os.fork()
    if not child:
        work(str(root), int(root.name))
        os._exit(0)
    print(root.name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs `write_shards` on each corpus named by a number, in a child that kills itself at its so-many-th file event."""


def named(row: Any) -> tuple[str, str]:
    return "new", "test"


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Seven kept clips in four tars, captioned `old`."""
    made: Corpus = make_corpus(
        [make_clip(person, 2.0 * i, person) for person in "ab" for i in range(3)] + [make_clip("c", 0, "c")]
    )
    decide(made)
    write_shards(made, CONFIG, caption=lambda row: ("old", "test"))
    return made


def decide(corpus: Corpus, **changes: Any) -> None:
    decided = {
        "kept": True,
        "reason": "",
        "failed_rules": [],
        "policy_digest": "d",
        "split": "train",
        **changes,
    }
    corpus.upsert(
        "decisions",
        [{"clip_id": key, **decided} for key in corpus.read("clips", ["clip_id"])["clip_id"].to_pylist()],
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def whole(folder: Path) -> None:
    """What the manifest in force names is there, byte for byte, and the stream reads it."""
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    stream = SampleStream(str(folder))
    assert len({sample.key for _, sample in islice(stream.read(), len(stream))}) == 7
    assert not stream.error_budget.damaged


@pytest.mark.slow
def test_a_run_killed_at_random_instants_loses_nothing_and_the_next_one_ends_as_if_it_had_not_been(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Every caption changes, so that every tar is written anew while the old ones are in force."""
    killed = tmp_path / "killed"
    for event in sorted(random.Random(0).sample(range(1, EVENTS), 8)):
        shutil.copytree(corpus.root, killed / str(event), symlinks=True)
    command = [sys.executable, "-c", KILLED, str(killed), "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    codes = {
        int(event): int(code) for event, code in (line.split() for line in done.stdout.split("\n") if line)
    }
    assert set(codes.values()) <= {-signal.SIGKILL, 0}, done.stderr
    assert sum(code == -signal.SIGKILL for code in codes.values()) >= 7
    write_shards(corpus, CONFIG, caption=named)
    for event in codes:
        folder = killed / str(event) / "shards"
        whole(folder)
        write_shards(Corpus.open(folder.parent), CONFIG, caption=named)
        assert contents(folder) == contents(corpus.root / "shards"), f"killed at event {event}"


def test_a_second_driver_is_told_to_wait_and_the_lock_dies_with_its_holder(corpus: Corpus) -> None:
    program = "import sys, filelock as f; lock = f.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    command = [sys.executable, "-c", program, str(corpus.root / ".shards.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run writes shards here"):
            write_shards(corpus, CONFIG, caption=named)
        holder.kill()
        holder.wait()
    assert write_shards(corpus, CONFIG, caption=named).written == 4


def test_a_disk_that_fills_up_while_writing_is_one_clear_line_and_leaves_no_half_file(corpus: Corpus) -> None:
    """The system refuses files over 8 kB, as a full disk would; what stands stays in force, and a re-run completes."""
    before = contents(corpus.root / "shards")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        with pytest.raises(
            UserError, match="shards cannot be written: File too large .*; check rights and space"
        ):
            write_shards(corpus, CONFIG, caption=named)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(corpus.root / "shards") == before
    assert write_shards(corpus, CONFIG, caption=named).written == 4


def test_too_little_room_is_said_before_anything_is_written(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**3))
    with pytest.raises(UserError, match=r"the new shards take .* MB, only 0.0 MB are free"):
        write_shards(corpus, CONFIG, caption=named)


def test_an_empty_decision_set_is_one_clear_line_and_the_shards_stay(corpus: Corpus) -> None:
    before = contents(corpus.root / "shards")
    decide(corpus, kept=False)
    with pytest.raises(UserError, match="the policy keeps no clip"):
        write_shards(corpus, CONFIG, caption=named)
    assert contents(corpus.root / "shards") == before


def test_a_table_from_a_newer_version_is_one_clear_line(corpus: Corpus) -> None:
    """The table's own protocol, raised above what this release reads."""
    log = sorted((corpus.root / "decisions" / "_delta_log").glob("*.json"))[0]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 99, "minWriterVersion": 99}
    log.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(UserError, match="of a newer version.*decisions"):
        write_shards(corpus, CONFIG, caption=named)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[int]]]:
    """An S3 server on loopback and a list of statuses that it answers, one per request, before it serves again."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server
    from werkzeug.wrappers import Response

    failures: list[int] = []
    s3 = DomainDispatcherApplication(create_backend_app)

    def flaky(environ: Any, start_response: Any) -> Any:
        if failures:
            return Response("<Error><Code>SlowDown</Code></Error>", failures.pop(0))(environ, start_response)
        return s3(environ, start_response)

    loopback = make_server("127.0.0.1", 0, flaky, threaded=True)
    threading.Thread(target=loopback.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{loopback.server_port}", failures
    loopback.shutdown()


@pytest.fixture
def bucket(server: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server's store with an empty bucket `corpus`; requests are asked again at once, and by us only."""
    import fsspec

    told = {
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "ENDPOINT_URL": server[0],
        "MAX_ATTEMPTS": "1",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(store_module, "WAITS_S", (0.01, 0.01))
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    type(store).clear_instance_cache()  # of other tests' servers
    monkeypatch.setattr(type(store), "retries", 1)
    store.mkdir("corpus")
    yield store
    server[1].clear()
    store.rm("corpus", recursive=True)
    type(store).clear_instance_cache()


def test_an_s3_store_that_errs_is_asked_again_and_one_that_is_down_is_named(
    corpus: Corpus, server: tuple[str, list[int]], bucket: Any
) -> None:
    failures = server[1]
    bucket.put(str(corpus.root / "shards"), "corpus/shards", recursive=True)

    failures += [503, 500]
    stream = SampleStream("s3://corpus/shards")
    failures += [503, 503]
    local = SampleStream(str(corpus.root / "shards"))
    assert [sample.key for _, sample in islice(stream.read(), 7)] == [
        sample.key for _, sample in islice(local.read(), 7)
    ]
    assert not stream.error_budget.damaged
    failures += [503] * 3
    assert len([sample for _, sample in islice(stream.read(), 6)]) == 6
    assert len(stream.error_budget.damaged) == 1
    failures += [503] * 100
    with pytest.raises(UserError, match="the store cannot be read"):
        SampleStream("s3://corpus/shards")


def test_an_s3_store_that_is_down_is_named_where_it_has_the_audio_shards(
    server: tuple[str, list[int]], bucket: Any
) -> None:
    bucket.pipe_file("corpus/EN/EN-B000000.tar", b"never opened")
    server[1].extend([503] * 100)
    for pattern in ("s3://corpus/EN", "s3://corpus/EN/*.tar"):
        with pytest.raises(UserError, match=r"^the store cannot be read: [^\n]+$") as told:
            find_tars([pattern])
        assert told.value.kind == "store-failed"


def test_shards_are_sent_to_s3_once_and_read_and_resumed_there(corpus: Corpus, bucket: Any) -> None:
    first = publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert (first.sent, first.stood, first.removed) == (4, 0, 0)
    for name, content in contents(corpus.root / "shards").items():
        assert bucket.cat_file(f"corpus/shards/{name}") == content
    bucket.pipe_file("corpus/shards/notes.txt", b"not ours")
    again = publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert (again.sent, again.stood, again.removed) == (0, 4, 0)

    local, there = (
        SampleStream(str(corpus.root / "shards"), seed=3),
        SampleStream("s3://corpus/shards", seed=3),
    )
    read = [sample.key for _, sample in islice(there.read(), 5)]
    resumed, position = SampleStream.resume("s3://corpus/shards", json.loads(json.dumps(there.state(5))))
    ranks = [islice(resumed.read(position, rank=rank, world=2), 8) for rank in range(2)]
    rest = sorted((at, sample.key) for own in ranks for at, sample in own)
    assert read + [key for _, key in rest] == [sample.key for _, sample in islice(local.read(), 21)]

    write_shards(corpus, CONFIG, caption=named)
    changed = publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert (changed.sent, changed.removed) == (4, 4)
    after = {path.removeprefix("corpus/shards/") for path in bucket.find("corpus/shards")}
    assert after == {*contents(corpus.root / "shards"), "notes.txt"}
    assert {sample.meta.caption for _, sample in islice(SampleStream("s3://corpus/shards").read(), 7)} == {
        "new"
    }


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_store_that_fails_while_shards_are_sent_loses_nothing_and_a_second_run_completes(
    corpus: Corpus, bucket: Any, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[int]], after: int
) -> None:
    """The store breaks down after so many files; the old manifest stays in force until all the new tars are there."""
    publish_shards(corpus.root / "shards", "s3://corpus/shards")
    write_shards(corpus, CONFIG, caption=named)
    real, puts = store_module.Store.put, list[str]()

    def breaking(self: Any, path: Path, name: str) -> None:
        puts.append(name)
        if len(puts) == after + 1:
            server[1].extend([503] * 50)
        real(self, path, name)

    monkeypatch.setattr(store_module.Store, "put", breaking)
    with pytest.raises(UserError, match="the store cannot be written: .*run it again") as caught:
        publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert "\n" not in str(caught.value)
    server[1].clear()
    old = SampleStream("s3://corpus/shards")
    assert [sample.meta.caption for _, sample in islice(old.read(), 7)] == ["old"] * 7
    summary = publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert summary.sent + summary.stood == 4
    assert summary.stood == min(4, after // 2)
    assert {sample.meta.caption for _, sample in islice(SampleStream("s3://corpus/shards").read(), 7)} == {
        "new"
    }


def test_a_copy_holds_what_manifests_name_and_nothing_that_a_killed_one_left(
    corpus: Corpus, tmp_path: Path
) -> None:
    """A sidecar of latents that no manifest names yet, as between its rename and the manifest, is not sent."""
    shards, there = corpus.root / "shards", tmp_path / "there"
    cache = shards / LATENTS_FOLDER / "0123"
    cache.mkdir(parents=True)
    write_manifest(cache, LatentCache("0123", {}, {}))
    (cache / "train-000000.tar").write_bytes(b"unnamed")
    there.mkdir()
    for name in (".train-000000.tar.part", ".manifest.json.part", "mine.part"):
        (there / name).write_bytes(b"half")
    publish_shards(shards, str(there))
    assert set(contents(there)) == {*contents(shards), "mine.part"} - {
        f"{LATENTS_FOLDER}/0123/train-000000.tar"
    }


def test_shards_are_not_copied_while_their_latents_change(corpus: Corpus, tmp_path: Path) -> None:
    with (
        locked(corpus.root / LATENTS_LOCK, "busy"),
        pytest.raises(UserError, match="another run makes, copies or forgets latents here") as told,
    ):
        publish_shards(corpus.root / "shards", str(tmp_path / "there"))
    assert told.value.kind == "busy"
    assert not (tmp_path / "there").exists()


def test_a_folder_that_fills_up_keeps_no_half_of_a_copy(corpus: Corpus, tmp_path: Path) -> None:
    """The system refuses files over 8 kB, as a full disk would."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        with pytest.raises(UserError, match="the store cannot be written"):
            publish_shards(corpus.root / "shards", str(tmp_path / "there"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "there").rglob("*.part"))


def test_shards_are_copied_to_another_folder_and_an_unknown_store_is_named(
    corpus: Corpus, tmp_path: Path
) -> None:
    publish_shards(corpus.root / "shards", str(tmp_path / "there" / "shards"))
    assert contents(tmp_path / "there" / "shards") == contents(corpus.root / "shards")
    with pytest.raises(UserError, match="unknown kind of store: .*nostore"):
        publish_shards(corpus.root / "shards", "nostore://bucket/shards")
