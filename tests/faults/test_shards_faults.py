"""Faults of shards: kills, full disks, damaged files and failing stores lose nothing."""

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
"""Approximate number of file events of a run. Kills happen at random ones."""
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
        files = ("open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect")
        if name in files and "/shards" in str(details):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    config = ShardConfig(max_samples=2)
    caption = (sys.argv[2], "test")
    uniavgen.shards.write.writer.write_shards(Corpus.open(root), config, caption=lambda row: caption)

for root in Path(sys.argv[1]).iterdir():
    child = os.fork()
    if not child:
        work(str(root), int(root.name))
        os._exit(0)
    print(root.name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs `write_shards` on each corpus in a child that kills itself at file event number (name of the
folder)."""


def caption_of(row: Any) -> tuple[str, str]:
    return "new", "test"


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Seven kept clips in four tars, captioned `old`."""
    corpus: Corpus = make_corpus(
        [make_clip(person, 2.0 * i, person) for person in "ab" for i in range(3)] + [make_clip("c", 0, "c")]
    )
    decide(corpus)
    write_shards(corpus, CONFIG, caption=lambda row: ("old", "test"))
    return corpus


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


def assert_complete(folder: Path) -> None:
    """Every tar of the manifest exists with its hash, and the stream reads all samples."""
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    stream = SampleStream(str(folder))
    assert len({sample.key for _, sample in islice(stream.read(), len(stream))}) == 7
    assert not stream.error_budget.damaged


@pytest.mark.slow
def test_run_after_random_kills_gives_the_same_shards(corpus: Corpus, tmp_path: Path) -> None:
    """Every caption changes, so every tar is rewritten while the manifest names the old ones."""
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
    write_shards(corpus, CONFIG, caption=caption_of)
    for event in codes:
        folder = killed / str(event) / "shards"
        assert_complete(folder)
        write_shards(Corpus.open(folder.parent), CONFIG, caption=caption_of)
        assert contents(folder) == contents(corpus.root / "shards"), f"killed at event {event}"


def test_second_writer_is_refused_until_the_lock_holder_dies(corpus: Corpus) -> None:
    program = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(corpus.root / ".shards.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run writes shards here"):
            write_shards(corpus, CONFIG, caption=caption_of)
        holder.kill()
        holder.wait()
    assert write_shards(corpus, CONFIG, caption=caption_of).written == 4


def test_full_disk_is_an_error_and_leaves_no_partial_file(corpus: Corpus) -> None:
    """Files over 8 kB fail, like on a full disk. The old shards stay valid, and a second run completes."""
    before = contents(corpus.root / "shards")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        with pytest.raises(
            UserError, match="shards cannot be written: File too large .*; check rights and space"
        ):
            write_shards(corpus, CONFIG, caption=caption_of)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(corpus.root / "shards") == before
    assert write_shards(corpus, CONFIG, caption=caption_of).written == 4


def test_missing_disk_space_is_an_error_before_writing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**3))
    with pytest.raises(UserError, match=r"the new shards need .* MB, only 0.0 MB are free"):
        write_shards(corpus, CONFIG, caption=caption_of)


def test_policy_without_kept_clips_leaves_the_shards(corpus: Corpus) -> None:
    before = contents(corpus.root / "shards")
    decide(corpus, kept=False)
    with pytest.raises(UserError, match="the policy keeps no clip"):
        write_shards(corpus, CONFIG, caption=caption_of)
    assert contents(corpus.root / "shards") == before


def test_newer_table_format_is_an_error(corpus: Corpus) -> None:
    """Raise the protocol version of the table above what deltalake reads."""
    log = sorted((corpus.root / "decisions" / "_delta_log").glob("*.json"))[0]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 99, "minWriterVersion": 99}
    log.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(UserError, match="have a newer version.*decisions"):
        write_shards(corpus, CONFIG, caption=caption_of)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[int]]]:
    """An S3 server on loopback, and a list of HTTP statuses that it answers first, one per request."""
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
    """The server with an empty bucket `corpus`. Only our retries are active, with short waits."""
    import fsspec

    environment = {
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "ENDPOINT_URL": server[0],
        "MAX_ATTEMPTS": "1",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
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


def test_s3_reads_are_retried_and_a_store_that_is_down_is_an_error(
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


def test_s3_store_that_is_down_is_an_error_for_audio_shards(
    server: tuple[str, list[int]], bucket: Any
) -> None:
    bucket.pipe_file("corpus/EN/EN-B000000.tar", b"never opened")
    server[1].extend([503] * 100)
    for pattern in ("s3://corpus/EN", "s3://corpus/EN/*.tar"):
        with pytest.raises(UserError, match=r"^the store cannot be read: [^\n]+$") as caught:
            find_tars([pattern])
        assert caught.value.kind == "store-failed"


def test_publish_sends_shards_once_and_they_are_read_and_resumed(corpus: Corpus, bucket: Any) -> None:
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
    resumed_keys = sorted((at, sample.key) for samples in ranks for at, sample in samples)
    assert read + [key for _, key in resumed_keys] == [sample.key for _, sample in islice(local.read(), 21)]

    write_shards(corpus, CONFIG, caption=caption_of)
    changed = publish_shards(corpus.root / "shards", "s3://corpus/shards")
    assert (changed.sent, changed.removed) == (4, 4)
    after = {path.removeprefix("corpus/shards/") for path in bucket.find("corpus/shards")}
    assert after == {*contents(corpus.root / "shards"), "notes.txt"}
    assert {sample.meta.caption for _, sample in islice(SampleStream("s3://corpus/shards").read(), 7)} == {
        "new"
    }


@pytest.mark.parametrize("after", [0, 3, 9])
def test_failed_publish_keeps_the_old_copy_and_a_second_run_completes_it(
    corpus: Corpus, bucket: Any, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[int]], after: int
) -> None:
    """The store fails after `after` files. The old manifest stays valid until all new tars are sent."""
    publish_shards(corpus.root / "shards", "s3://corpus/shards")
    write_shards(corpus, CONFIG, caption=caption_of)
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


def test_publish_skips_unnamed_sidecars_and_removes_partial_files(corpus: Corpus, tmp_path: Path) -> None:
    """A sidecar that no manifest names yet, as between its rename and the manifest, is not sent."""
    shards, there = corpus.root / "shards", tmp_path / "there"
    cache = shards / LATENTS_FOLDER / "0123"
    cache.mkdir(parents=True)
    write_manifest(cache, LatentCache("0123", {}, {}))
    (cache / "train-000000.tar").write_bytes(b"unnamed")
    there.mkdir()
    for name in (".train-000000.tar.part", ".manifest.json.part", "mine.part"):
        (there / name).write_bytes(b"partial")
    publish_shards(shards, str(there))
    assert set(contents(there)) == {*contents(shards), "mine.part"} - {
        f"{LATENTS_FOLDER}/0123/train-000000.tar"
    }


def test_publish_is_refused_while_latents_are_computed(corpus: Corpus, tmp_path: Path) -> None:
    with (
        locked(corpus.root / LATENTS_LOCK, "busy"),
        pytest.raises(UserError, match="another run computes latents here") as caught,
    ):
        publish_shards(corpus.root / "shards", str(tmp_path / "there"))
    assert caught.value.kind == "busy"
    assert not (tmp_path / "there").exists()


def test_publish_to_a_full_disk_leaves_no_partial_file(corpus: Corpus, tmp_path: Path) -> None:
    """The system refuses files over 8 kB, like a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        with pytest.raises(UserError, match="the store cannot be written"):
            publish_shards(corpus.root / "shards", str(tmp_path / "there"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "there").rglob("*.part"))


def test_publish_to_a_folder_and_to_an_unknown_store(corpus: Corpus, tmp_path: Path) -> None:
    publish_shards(corpus.root / "shards", str(tmp_path / "there" / "shards"))
    assert contents(tmp_path / "there" / "shards") == contents(corpus.root / "shards")
    with pytest.raises(UserError, match="unknown kind of store: .*nostore"):
        publish_shards(corpus.root / "shards", "nostore://bucket/shards")
