"""Read and write files of one folder, local or at any fsspec URL, with retries.

The retry loop is our own: `tenacity` 9.2 does the same on the same inputs in as many lines, and would be one
more dependency.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_path

log = logging.getLogger(__name__)

WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Waits in s before each retry of a failed access. Heuristic."""


class Store:
    """A folder in a store; threads may share it. `root` is its path without the protocol.

    A local path is taken as it is, whatever its characters; a `file://` URI is decoded. Raises UserError of
    kind `no-store` if the URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        path = local_path(url)
        if path is not None:  # fsspec takes `::`, `~` and `file:` in a path for its own syntax
            is_home = path.startswith("~/") and not os.path.lexists(path)
            path = os.path.expanduser(path) if is_home else path
            self.files, self.root = LocalFileSystem(), os.path.abspath(path)
            return
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            hint = "name a folder or a URL as s3://bucket/path"
            raise UserError(
                f"unknown kind of store: {error}", where=url, hint=hint, kind="no-store"
            ) from error

    def full_path(self, name: str) -> str:
        """The path of a file in the store, also for messages."""
        return f"{self.root}/{name}"

    def read_file(self, name: str, *, missing: str, hint: str) -> bytes:
        """Read a small file.

        Raises UserError of kind `no-shards` with the texts `missing` and `hint` if there is no such file, of
        kind `store-failed` if the store keeps failing.
        """
        try:
            return self._read(name)
        except FileNotFoundError as error:
            raise UserError(missing, where=self.full_path(name), hint=hint, kind="no-shards") from error
        except Exception as error:  # every kind of store raises its own
            raise self.failure(name, error) from error

    def read_span(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of a tar. Every failure is a UserError of kind `damaged-sample`: it costs one sample."""
        where = self.full_path(name)
        try:
            span = self._read(name, start=offset, end=offset + length)
        except FileNotFoundError as error:
            raise UserError("the shard is missing", where=where, kind="damaged-sample") from error
        except Exception as error:  # every kind of store raises its own
            raise UserError(
                f"the shard cannot be read: {_one_line(error)}", where=where, kind="damaged-sample"
            ) from error
        if len(span) != length:
            raise UserError(
                f"the shard ends inside the sample at byte {offset}", where=where, kind="damaged-sample"
            )
        return span

    def list_folders(self, name: str) -> list[str]:
        """Sorted names of the folders inside a folder; none if it does not exist."""
        try:
            listed = self.files.ls(self.full_path(name), detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # every kind of store raises its own
            raise self.failure(name, error) from error
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] for entry in listed if entry["type"] == "directory"
        )

    def _read(self, name: str, **span: int) -> bytes:
        """Read a file with retries. Raises FileNotFoundError, without a retry, if there is none."""
        content: bytes = self._retried(name, lambda path: self.files.cat_file(path, **span))
        return content

    def _retried(self, name: str, act: Callable[[str], Any]) -> Any:
        path = self.full_path(name)
        for wait_s in WAITS_S:
            try:
                return act(path)
            except FileNotFoundError:
                raise
            except Exception as error:  # every kind of store raises its own
                log.info("retrying %s in %g s: %s", path, wait_s, _one_line(error))
                time.sleep(wait_s)
        return act(path)

    def list_files(self) -> list[str]:
        """Sorted paths of all files below the folder, relative to it. Bypasses the listing cache."""
        self.files.invalidate_cache()
        return sorted(path.removeprefix(self.root).lstrip("/") for path in self.files.find(self.root))

    def read_if_exists(self, name: str) -> bytes | None:
        """Read a small file; None if it does not exist."""
        try:
            return self._read(name)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        try:
            size: int = self._retried(name, self.files.info)["size"]
            return size
        except FileNotFoundError:
            return None

    def put(self, path: Path, name: str) -> None:
        """Copy a local file into the store atomically. Raises the error of the last retry."""
        target = self.full_path(name)
        if not isinstance(self.files, LocalFileSystem):  # object stores show only complete objects
            self._retried(name, lambda target: self.files.put_file(str(path), target))
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        part = Path(target).with_name(f".{Path(target).name}.part")
        try:
            shutil.copyfile(path, part)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        with suppress(FileNotFoundError):
            self._retried(name, self.files.rm_file)

    def failure(self, name: str, error: Exception, what: str = "read") -> UserError:
        """The UserError for a store that keeps failing; `what` is `read` or `written`."""
        text = f"the store cannot be {what}: {_one_line(error)}"
        hint = "check address, rights and network, then run it again"
        return UserError(text, where=self.full_path(name).rstrip("/"), hint=hint, kind="store-failed")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
