"""Download cache against real servers on the loopback: complete files or none, size limit, locks."""

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PosixPath

import pytest

from uniavgen.ingest.config import IngestConfig, SourceConfig
from uniavgen.ingest.io.download_cache import DownloadCache
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.local_files import content_id
from uniavgen.ingest.io.sources import find_sources
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.measures.sound import SoundStep
from uniavgen.ingest.records import SourceRecord
from uniavgen.shards.errors import UserError

MIB = 2**20
FILES = {
    "a.mp4": b"first" * 1000,
    "deep/er/b.mkv": b"second" * 1000,
    "deep/notes.md": b"no video",
    "odd 100% ü'[1].mp4": b"third" * 1000,
    "folder.mp4/c.mov": b"fourth" * 1000,
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a local S3 server; address and keys are in the environment, where s3fs reads them."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("ACCESS_KEY_ID", "k"),
            ("SECRET_ACCESS_KEY", "s"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", address)
        import s3fs

        store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        store.mkdir("videos")
        for name, content in FILES.items():
            store.pipe(f"videos/raw/{name}", content)
        yield "s3://videos/raw"
    server.stop()


@pytest.fixture
def cache(tmp_path: Path) -> DownloadCache:
    return DownloadCache(SourceConfig(), tmp_path / "scratch")


def test_bucket_folder_pattern_and_file_are_listed_like_local_ones(bucket: str) -> None:
    videos = {f"{bucket}/{name}" for name in FILES if not name.endswith(".md")}
    sources = find_sources([bucket])
    assert set(sources.videos) == videos
    assert sources.passed_over == {f"{bucket}/deep/notes.md": "not a video by its name"}
    assert [entry.bytes for entry in sources.entries if entry.uri.endswith("b.mkv")] == [6000]
    assert len({entry.stamp for entry in sources.entries}) == len(videos)
    assert "" not in {entry.stamp for entry in sources.entries}
    assert find_sources([f"{bucket}/**/*.mkv"]).videos == [f"{bucket}/deep/er/b.mkv"]
    for entry in sources.entries:  # each named alone gives an equal entry
        assert find_sources([entry.uri]).entries == [entry]
    with pytest.raises(UserError, match="no such file or folder"):
        find_sources([f"{bucket}/nothing"])
    with pytest.raises(UserError, match="NoSuchBucket|no such|the store says"):
        find_sources(["s3://nobody/x"])


def test_remote_list_may_only_name_its_own_store(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{bucket}/a.mp4\n{bucket}/gone.mp4\n")
    here, gone = find_sources([str(tmp_path / "list.txt")]).entries
    assert (here.bytes, gone.bytes, gone.stamp) == (5000, None, "")
    import s3fs

    store = s3fs.S3FileSystem()
    store.pipe("videos/list.txt", b"raw/a.mp4\n")
    assert find_sources(["s3://videos/list.txt"]).entries == [here]
    for trap in ("/etc/passwd\n", "file:///etc/passwd\n", "http://127.0.0.1:9/x.mp4\n", "../other/x.mp4\n"):
        store.pipe("videos/trap.txt", trap.encode())
        with pytest.raises(UserError) as caught:
            find_sources(["s3://videos/trap.txt"])
        assert caught.value.kind == "bad-url"


def test_remote_file_is_fetched_completely_and_kept_while_held(bucket: str, cache: DownloadCache) -> None:
    for entry in find_sources([bucket]).entries:
        content = FILES[entry.uri.removeprefix(bucket + "/")]
        with cache.hold(entry) as path:
            assert Path(path).read_bytes() == content
            assert content_id(path) == hashlib.sha256(content).hexdigest()[:32]
            assert cache.fetch(entry) == path
        assert Path(path).exists()  # for the next step
        cache.drop(entry)
        assert not Path(path).exists()


def test_missing_or_changed_remote_file_raises_and_leaves_no_file(bucket: str, cache: DownloadCache) -> None:
    wrong = {
        "gone.mp4": Entry(f"{bucket}/gone.mp4"),
        "longer": Entry(f"{bucket}/a.mp4", "x", 4999),
        "shorter": Entry(f"{bucket}/a.mp4", "x", 5001),
    }
    kinds = {}
    for name, entry in wrong.items():
        with pytest.raises(UserError) as caught:
            cache.fetch(entry)
        kinds[name] = caught.value.kind
    assert kinds == {"gone.mp4": "unreadable", "longer": "incomplete", "shorter": "incomplete"}
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def big_files(bucket: str, count: int) -> list[Entry]:
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    for index in range(count):
        store.pipe(f"videos/big/{index}.mp4", bytes([index]) * MIB)
    return find_sources([bucket.replace("raw", "big")]).entries


def test_cache_keeps_its_size_and_drops_least_recently_used(bucket: str, tmp_path: Path) -> None:
    entries = big_files(bucket, 4)
    cache = DownloadCache(SourceConfig(cache_gb=2.5 / 1024), tmp_path)
    paths = []
    for entry in entries[:2]:
        with cache.hold(entry) as path:
            paths.append(path)
        time.sleep(0.02)
    with cache.hold(entries[0]):  # used again, so the second is now the least recently used
        pass
    with cache.hold(entries[2]):
        assert [Path(path).exists() for path in paths] == [True, False]
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 2.5 * MIB


def test_fetch_waits_for_space_held_by_others(bucket: str, tmp_path: Path) -> None:
    entries = big_files(bucket, 4)
    cache = DownloadCache(SourceConfig(cache_gb=2.5 / 1024), tmp_path)
    other = DownloadCache(SourceConfig(cache_gb=2.5 / 1024, fetch_seconds=0.5), tmp_path)
    for entry in entries[:2]:
        cache.fetch(entry)
    with pytest.raises(UserError) as caught:
        other.fetch(entries[2])
    assert caught.value.kind == "no-room"
    assert "sources.cache_gb" in str(caught.value)
    timer = threading.Timer(0.5, cache.release, [entries[0].uri])
    timer.start()
    patient = DownloadCache(SourceConfig(cache_gb=2.5 / 1024), tmp_path)
    assert Path(patient.fetch(entries[2])).read_bytes() == b"\2" * MIB
    timer.join()


class EmptiedWhileRead(PosixPath):
    """A folder whose files another process removes between listing and stat."""

    def glob(self, pattern: str) -> Iterator[Path]:
        for path in list(super().glob(pattern)):
            path.unlink()
            yield path


def test_file_removed_while_space_is_counted_raises_nothing(web: str, tmp_path: Path) -> None:
    cache = DownloadCache(SourceConfig(allow_http=True), tmp_path)
    cache.folder.mkdir()
    (cache.folder / "other.video").write_bytes(b"gone at once")
    cache.folder = EmptiedWhileRead(cache.folder)
    with cache.hold(Entry(f"{web}/video.mp4", "x", 4000)) as path:
        assert Path(path).stat().st_size == 4000
    (tmp_path / "other.s16").write_bytes(b"gone at once")
    record = SourceRecord(f"{web}/video.mp4", "0123")
    graph = step_graph(IngestConfig(scratch_gb=0))
    SoundStep(graph, EmptiedWhileRead(tmp_path), tmp_path).release(record)
    assert not (tmp_path / "other.s16").exists()


def test_source_larger_than_the_cache_names_the_limit(tmp_path: Path) -> None:
    cache = DownloadCache(SourceConfig(cache_gb=1 / 1024), tmp_path)
    with pytest.raises(UserError, match=r"sources\.cache_gb") as caught:
        cache.fetch(Entry("s3://videos/huge.mp4", "x", 2 * MIB))
    assert caught.value.kind == "too-large"


FETCHER = """
import sys
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.io.download_cache import DownloadCache
DownloadCache(SourceConfig(allow_http=True), sys.argv[2]).fetch(Entry(sys.argv[1], "x", int(sys.argv[3])))
print("fetched", flush=True)
"""


class Server(http.server.BaseHTTPRequestHandler):
    """A web server that misbehaves according to the requested path."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012 - counted by the tests
    release = threading.Event()
    video = b""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", rest if "://" in rest or rest.startswith("file:") else f"/{rest}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        content = self.video if kind == "video" else b"video" * 800
        self.send_response(200)
        self.send_header("ETag", '"e1"')
        if kind == "endless":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        try:
            if kind == "endless":
                while True:
                    self.wfile.write(b"%x\r\n%s\r\n" % (65536, bytes(65536)))
            elif kind in ("slow", "stuck"):
                self.wfile.write(content[:2000])
                self.wfile.flush()
                self.release.wait(20)
                self.wfile.write(content[2000:])
            elif kind == "half":
                self.wfile.write(content[:2000])
                self.close_connection = True
            else:
                self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    Server.asked, Server.release = [], threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Server.release.set()
        server.shutdown()


def test_web_address_is_read_only_when_allowed(web: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_sources([f"{web}/video.mp4"])
    assert (caught.value.kind, "ingest.sources.allow_http=true" in str(caught.value)) == ("http-off", True)
    with pytest.raises(UserError):
        DownloadCache(SourceConfig(), tmp_path).fetch(Entry(f"{web}/video.mp4"))
    assert Server.asked == []
    allowed = SourceConfig(allow_http=True)
    (entry,) = find_sources([f"{web}/video.mp4"], allowed).entries
    assert (entry.bytes, entry.stamp) == (4000, '4000-"e1"')
    with DownloadCache(allowed, tmp_path).hold(entry) as path:
        assert Path(path).read_bytes() == b"video" * 800
    (moved,) = find_sources([f"{web}/redirect/video.mp4"], allowed).entries
    with DownloadCache(allowed, tmp_path).hold(moved) as path:
        assert Path(path).stat().st_size == 4000


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("missing/a.mp4", "unreadable"),
        ("redirect/file:///etc/passwd", "bad-url"),
        ("redirect/ftp://127.0.0.1/a.mp4", "bad-url"),
        ("redirect/redirect/redirect/redirect/redirect/redirect/a.mp4", "bad-url"),
        ("half/a.mp4", "unreachable"),
        ("slow/a.mp4", "timeout"),
        ("endless/a.mp4", "incomplete"),
    ],
)
def test_misbehaving_web_server_ends_as_error_within_limits(
    web: str, tmp_path: Path, path: str, kind: str
) -> None:
    config = SourceConfig(allow_http=True, source_gb=2 / 1024, cache_gb=4 / 1024, fetch_seconds=1.0)
    cache = DownloadCache(config, tmp_path)
    (entry,) = find_sources([f"{web}/{path}"], config).entries
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        cache.fetch(entry)
    assert caught.value.kind == kind
    assert time.monotonic() - began < 5
    assert [file.name for file in cache.folder.iterdir()] == ["lock"]


def test_same_source_is_fetched_once_by_parallel_workers(web: str, tmp_path: Path) -> None:
    config = SourceConfig(allow_http=True)
    entry = Entry(f"{web}/slow/a.mp4", "x", 4000)
    caches = [DownloadCache(config, tmp_path) for _ in range(3)]
    threads = [threading.Thread(target=cache.fetch, args=[entry]) for cache in caches]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    Server.release.set()
    for thread in threads:
        thread.join(timeout=20)
    assert [Path(cache.fetch(entry)).stat().st_size for cache in caches] == [4000] * 3
    assert Server.asked == ["/slow/a.mp4"]


def test_killed_fetch_is_restarted_and_its_space_is_freed(web: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCHER, f"{web}/stuck/a.mp4", str(tmp_path), "4000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
        part = tmp_path / "staged"
        deadline = time.monotonic() + 20
        while not list(part.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    assert len(list(part.glob("*.part"))) == 1
    Server.release.set()
    cache = DownloadCache(SourceConfig(allow_http=True, cache_gb=5000 / 2**30), tmp_path)
    # space for one file only: the part file of the killed fetch must be removed first
    with cache.hold(Entry(f"{web}/video.mp4", "x", 4000)) as path:
        assert Path(path).read_bytes() == b"video" * 800
    assert list(part.glob("*.part")) == []
    with cache.hold(Entry(f"{web}/stuck/a.mp4", "x", 4000)) as path:
        assert Path(path).read_bytes() == b"video" * 800


@pytest.mark.slow
def test_one_ingest_reads_files_bucket_and_web_and_reports_failures(
    bucket: str, web: str, tmp_path: Path
) -> None:
    from uniavgen.ingest.pipeline import ingest
    from uniavgen.shards.corpus.tables import Corpus

    videos = []
    for index in range(3):
        videos.append(tmp_path / f"video{index}.mkv")
        picture = [
            "-f",
            "lavfi",
            "-i",
            f"testsrc=s=96x64:r=25:d={1 + index}",
            "-f",
            "lavfi",
            "-i",
            f"sine=d={1 + index}",
        ]
        command = [ffmpeg_path(), "-loglevel", "error", *picture, "-pix_fmt", "yuv420p", str(videos[-1])]
        subprocess.run(command, check=True, timeout=60)
    here = tmp_path / "here"
    (here / "folder.mp4").mkdir(parents=True)
    odd = os.fsencode(here) + b"/caf\xe9 'line\nbreak'.mkv"
    os.rename(videos[0], odd)
    (here / "zero.mp4").touch()
    (here / "folder.mp4" / "text.mov").write_text("no video")
    (here / "list.ts").write_text(f"#EXTM3U\n#EXTINF:1,\n{videos[1]}\n#EXT-X-ENDLIST\n")
    (here / "out.mp4").symlink_to("/etc/hostname")
    os.mkfifo(here / "pipe.mp4")
    import s3fs

    s3fs.S3FileSystem().put(str(videos[1]), "videos/run/in the bucket.mkv")
    Server.video = videos[2].read_bytes()
    corpus = Corpus.create(tmp_path / "corpus")
    config = IngestConfig.model_validate({"sources": {"allow_http": True}})
    sources = [
        str(here),
        bucket.replace("raw", "run"),
        f"{web}/video/at the web.mkv".replace(" ", "%20"),
        f"{web}/missing/a.mkv",
    ]
    summary = ingest(sources, corpus.root, config)
    measured = {row["uri"].rpartition("/")[2]: row for row in corpus.read("sources").to_pylist()}
    assert set(measured) == {"caf%E9%20%27line%0Abreak%27.mkv", "in the bucket.mkv", "at%20the%20web.mkv"}
    assert [round(row["duration_s"]) for _, row in sorted(measured.items())] == [3, 1, 2]
    failures = {
        row["uri"].rpartition("/")[2]: row["error_type"] for row in corpus.read("failures").to_pylist()
    }
    assert failures == {
        "zero.mp4": "empty",
        "text.mov": "not-a-video",
        "list.ts": "not-a-video",
        "a.mkv": "unreadable",
    }
    assert set(summary.passed_over.values()) == {"a pipe", "a link that leads out of the folder"}
    clips = corpus.read("clips").to_pylist()
    assert {row["source_id"] for row in clips} == {row["source_id"] for row in measured.values()}
    assert all(
        corpus.media_path(row["clip_id"], name).is_file()
        for row in clips
        for name in ("mp4", "flac", "face.npz")
    )
    assert not list(tmp_path.rglob("*.video"))
