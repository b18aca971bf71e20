"""Remote videos as local files, in a cache of bounded size that all workers of a run share.

Goes in: an `Entry`. Comes out: a local path. A local file is its own copy. The cache is a folder: a file's length counts
against `sources.cache_gb` from the moment its fetch begins (the part file has its full length at once), a lock on a file
says that somebody reads or writes it, and a process that dies drops its locks. When room is wanted, files that nobody reads
go, the longest unused first; when all are read, the fetch waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.sources import check_allowed
from uniavgen.ingest.io.uris import WEB, Entry, check_regular, filesystem, local_path, protocol_of
from uniavgen.ingest.io.web import web_fetch
from uniavgen.shards.errors import UserError

BLOCK = 1 << 22
"""Bytes that are read from a store at once."""
WAIT_SECONDS = 0.2
"""Between two looks for room."""
GIB = 2**30


class DownloadCache:
    """The cache in the folder `scratch`, as one process sees it."""

    def __init__(self, config: SourceConfig, scratch: str | Path) -> None:
        self.config = config
        self.folder = Path(scratch) / "staged"
        self._held: dict[str, IO[bytes]] = {}

    def fetch(self, source: Entry) -> str:
        """A local path (UTF-8) with the source's content, which stays until `release(source.uri)` or the process's end.

        Raises UserError for what is no readable file, is larger than a limit, comes incomplete, takes too long, or finds
        no room in time (unreadable, not-a-file, empty, too-large, incomplete, timeout, no-room, unreachable, http-off).
        """
        path = local_path(source.uri)
        if path is not None:
            check_regular(path)
            return path if path == source.uri else self._link(path)
        check_allowed(source.uri, self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self._place(source)
        deadline = time.monotonic() + self.config.fetch_seconds
        while source.uri not in self._held:
            held = _lock_existing(final, fcntl.LOCK_SH)
            if held is not None:
                os.utime(final)  # for the longest unused first
                self._held[source.uri] = held
            elif (part := self._reserve(source, final, deadline)) is not None:
                with part:
                    self._fill(part, source, deadline)
                    os.replace(part.name, final)
        return str(final)

    def release(self, uri: str) -> None:
        """This process no longer reads the source; its copy goes when its room is wanted."""
        held = self._held.pop(uri, None)
        if held is not None:
            held.close()

    def drop(self, source: Entry) -> None:
        """The source is done with: its copy goes now, unless another process reads it."""
        self.release(source.uri)
        if local_path(source.uri) is None:
            _remove_unused(self._place(source))

    @contextmanager
    def hold(self, source: Entry) -> Iterator[str]:
        """`fetch` and `release` round a block."""
        try:
            yield self.fetch(source)
        finally:
            self.release(source.uri)

    def _link(self, path: str) -> str:
        """A plain name for a file whose own is no UTF-8: not every library and store of facts takes such a name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.link"
        with suppress(FileExistsError):
            link.symlink_to(path)
        return str(link)

    def _place(self, source: Entry) -> Path:
        name = hashlib.sha256(f"{source.uri}\n{source.stamp}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.video"

    def _reserve(self, source: Entry, final: Path, deadline: float) -> IO[bytes] | None:
        """An empty, locked part file of the source's length; None if the copy turned up meanwhile, or another fetches it."""
        size = self._size(source)
        part = final.with_suffix(".part")
        while time.monotonic() < deadline:
            with _folder_lock(self.folder):
                if final.exists():
                    return None
                if not part.exists() and self._make_room(size):
                    file = open(part, "wb")  # noqa: SIM115 - the caller closes it
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.truncate(size)
                    return file
                _remove_unused(part)  # of a fetch that died; one that lives keeps its lock
            time.sleep(WAIT_SECONDS)
        hint = "raise sources.cache_gb or sources.fetch_seconds, or use fewer workers"
        raise UserError(
            "no room in the cache of fetched sources", where=source.uri, hint=hint, kind="no-room"
        )

    def _size(self, source: Entry) -> int:
        """Bytes to reserve: the source's, or the most it may have where its store does not tell."""
        limit = min(self.config.source_gb, self.config.cache_gb) * GIB
        size = limit if source.bytes is None else source.bytes
        if size > limit:
            name = "source_gb" if self.config.source_gb <= self.config.cache_gb else "cache_gb"
            what = f"{size / GIB:.3g} GiB large, the limit of a remote source is {limit / GIB:.3g} GiB"
            raise UserError(
                what, where=source.uri, hint=f"fetch it first or raise sources.{name}", kind="too-large"
            )
        return int(size)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes fit, after removing copies that nobody reads as far as needed."""
        limit = self.config.cache_gb * GIB
        files = {
            path: facts
            for path, facts in files_in(self.folder, "*.*").items()
            if not stat.S_ISLNK(facts.st_mode)
        }
        taken = sum(facts.st_size for facts in files.values())
        for path, facts in sorted(files.items(), key=lambda file: file[1].st_mtime):
            if taken + size <= limit:
                break
            if _remove_unused(path):
                taken -= facts.st_size
        return taken + size <= limit

    def _fill(self, part: IO[bytes], source: Entry, deadline: float) -> None:
        """Fetch the content into the part file and check its length; the part file goes if anything is wrong."""
        most = self._size(source)

        def take(size: int) -> None:
            if size > most:
                raise UserError(
                    f"it sends more than {most} bytes", where=source.uri, hint="run again", kind="incomplete"
                )
            if time.monotonic() > deadline:
                hint = "raise sources.fetch_seconds"
                raise UserError(
                    f"not there after {self.config.fetch_seconds:.0f} s",
                    where=source.uri,
                    hint=hint,
                    kind="timeout",
                )

        try:
            seconds = max(0.1, deadline - time.monotonic())
            web = protocol_of(source.uri) in WEB
            size = web_fetch(source.uri, part, seconds, take) if web else _store_fetch(source.uri, part, take)
            if source.bytes is not None and size != source.bytes:
                what = f"{size} of {source.bytes} bytes came"
                raise UserError(what, where=source.uri, hint="run again", kind="incomplete")
            if not size:
                raise UserError(
                    "the file is empty (zero bytes)", where=source.uri, hint="fetch it again", kind="empty"
                )
            part.truncate(size)
            part.flush()
        except BaseException:
            os.unlink(part.name)
            raise


def files_in(folder: Path, pattern: str) -> dict[Path, os.stat_result]:
    """Files of a folder and what the system says of them (of a link: of itself). Others work in it: one may go meanwhile."""
    found = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found[path] = path.lstat()
    return found


def _store_fetch(uri: str, target: IO[bytes], take: Callable[[int], None]) -> int:
    """Copy a file of an fsspec store into `target`; `take` hears the bytes so far and may raise."""
    size = 0
    for block in _store_blocks(uri):
        size += len(block)
        take(size)
        target.write(block)
    return size


def _store_blocks(uri: str) -> Iterator[bytes]:
    store, path = filesystem(uri)
    try:
        with store.open(path, "rb", block_size=BLOCK) as source:
            while block := source.read(BLOCK):
                yield block
    except FileNotFoundError as error:
        raise UserError("no such file", where=uri, hint="check the address", kind="unreadable") from error
    except Exception as error:  # every store has its own errors
        raise UserError(
            f"fetching failed: {error}"[:300], where=uri, hint="run again", kind="unreachable"
        ) from error


def _lock_existing(path: Path, mode: int) -> IO[bytes] | None:
    """The open, locked file if it is still there; None if not. Does not wait for a lock."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the lock lives as long as the file is open
        fcntl.flock(file, mode | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:  # it may have been removed between the two
            return file
        file.close()
    except FileNotFoundError:
        pass
    except BlockingIOError:
        file.close()
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody holds; whether it is gone."""
    file = _lock_existing(path, fcntl.LOCK_EX)
    if file is not None:
        with file, suppress(FileNotFoundError):
            os.unlink(path)
    return not path.exists()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
