"""A size-limited cache of remote videos on local disk, shared by all workers of a run.

A file counts with its full length against `sources.cache_gb` from the start of its download. A lock on a file
says that a process reads or writes it; a process that dies drops its locks. When space is needed, files that
nobody reads are removed, least recently used first; while all are read, the download waits. A local source is
used where it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.local_files import check_regular, file_statuses
from uniavgen.ingest.io.remote_files import check_allowed, download
from uniavgen.ingest.io.uris import Entry
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_path

POLL_SECONDS = 0.2
"""Time between two checks for space."""
GIB = 2**30


class DownloadCache:
    """The cache in the folder `scratch`, as one process uses it."""

    def __init__(self, config: SourceConfig, scratch: str | Path) -> None:
        self.config = config
        self.folder = Path(scratch) / "staged"
        self._held: dict[str, IO[bytes]] = {}

    def fetch(self, source: Entry) -> str:
        """A local path (UTF-8) with the source's content, kept until `release(source.uri)` or the end of this
        process.

        Raises UserError (unreadable, not-a-file, empty, too-large, incomplete, timeout, no-room, unreachable,
        http-off).
        """
        path = local_path(source.uri)
        if path is not None:
            check_regular(path)
            return path if path == source.uri else self._link(path)
        check_allowed(source.uri, self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        cached = self._cached_path(source)
        deadline = time.monotonic() + self.config.fetch_seconds
        while source.uri not in self._held:
            held = _lock_existing(cached, fcntl.LOCK_SH)
            if held is not None:
                os.utime(cached)  # marks it as recently used
                self._held[source.uri] = held
            elif (part := self._reserve(source, cached, deadline)) is not None:
                with part:
                    self._fill(part, source, deadline)
                    os.replace(part.name, cached)
        return str(cached)

    def release(self, uri: str) -> None:
        """This process no longer reads the source; its copy is removed when its space is needed."""
        held = self._held.pop(uri, None)
        if held is not None:
            held.close()

    def drop(self, source: Entry) -> None:
        """The source is finished: remove its copy now, unless another process reads it."""
        self.release(source.uri)
        if local_path(source.uri) is None:
            _remove_unused(self._cached_path(source))

    @contextmanager
    def hold(self, source: Entry) -> Iterator[str]:
        """`fetch` and `release` around a block."""
        try:
            yield self.fetch(source)
        finally:
            self.release(source.uri)

    def _link(self, path: str) -> str:
        """A link with a plain name to a file whose own name is not UTF-8: not every library accepts such a
        name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.link"
        with suppress(FileExistsError):
            link.symlink_to(path)
        return str(link)

    def _cached_path(self, source: Entry) -> Path:
        name = hashlib.sha256(f"{source.uri}\n{source.stamp}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.video"

    def _reserve(self, source: Entry, cached: Path, deadline: float) -> IO[bytes] | None:
        """An empty, locked part file of the source's length; None if another process has fetched it
        meanwhile.
        """
        size = self._size_limit(source)
        part = cached.with_suffix(".part")
        while time.monotonic() < deadline:
            with _folder_lock(self.folder):
                if cached.exists():
                    return None
                if not part.exists() and self._make_room(size):
                    file = open(part, "wb")  # noqa: SIM115 - the caller closes it
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.truncate(size)
                    return file
                _remove_unused(part)  # left by a process that died; a live one holds its lock
            time.sleep(POLL_SECONDS)
        raise UserError(
            "no room in the download cache",
            where=source.uri,
            hint="raise sources.cache_gb or sources.fetch_seconds, or use fewer workers",
            kind="no-room",
        )

    def _size_limit(self, source: Entry) -> int:
        """Bytes to reserve: the source's length, or the maximum where its store does not tell the length."""
        limit = min(self.config.source_gb, self.config.cache_gb) * GIB
        size = limit if source.bytes is None else source.bytes
        if size > limit:
            name = "source_gb" if self.config.source_gb <= self.config.cache_gb else "cache_gb"
            raise UserError(
                f"{size / GIB:.3g} GiB large, the limit of a remote source is {limit / GIB:.3g} GiB",
                where=source.uri,
                hint=f"fetch it first or raise sources.{name}",
                kind="too-large",
            )
        return int(size)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes fit, after removing as many files that nobody reads as needed."""
        limit = self.config.cache_gb * GIB
        files = {
            path: status
            for path, status in file_statuses(self.folder, "*.*").items()
            if not stat.S_ISLNK(status.st_mode)
        }
        used = sum(status.st_size for status in files.values())
        for path, status in sorted(files.items(), key=lambda file: file[1].st_mtime):
            if used + size <= limit:
                break
            if _remove_unused(path):
                used -= status.st_size
        return used + size <= limit

    def _fill(self, part: IO[bytes], source: Entry, deadline: float) -> None:
        """Download into the part file and check its length; the part file is removed on any error."""
        max_bytes = self._size_limit(source)

        def check_progress(size: int) -> None:
            if size > max_bytes:
                raise UserError(
                    f"the server sends more than {max_bytes} bytes",
                    where=source.uri,
                    hint="run again",
                    kind="incomplete",
                )
            if time.monotonic() > deadline:
                raise UserError(
                    f"the download is not complete after {self.config.fetch_seconds:.0f} s",
                    where=source.uri,
                    hint="raise sources.fetch_seconds",
                    kind="timeout",
                )

        try:
            size = download(source.uri, part, max(0.1, deadline - time.monotonic()), check_progress)
            if source.bytes is not None and size != source.bytes:
                raise UserError(
                    f"{size} of {source.bytes} bytes arrived",
                    where=source.uri,
                    hint="run again",
                    kind="incomplete",
                )
            if not size:
                raise UserError(
                    "the file is empty (zero bytes)", where=source.uri, hint="fetch it again", kind="empty"
                )
            part.truncate(size)
            part.flush()
        except BaseException:
            os.unlink(part.name)
            raise


def _lock_existing(path: Path, mode: int) -> IO[bytes] | None:
    """The open, locked file, or None where it does not exist or is locked. Does not wait."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the lock lives as long as the file is open
        fcntl.flock(file, mode | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:  # it may have been removed between the two calls
            return file
        file.close()
    except FileNotFoundError:
        pass
    except BlockingIOError:
        file.close()
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody holds; return whether it is gone."""
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
