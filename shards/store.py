"""Where shards stand, a local folder or any fsspec URL; a store that fails is asked again.

In: a folder's path or URL, names of files in it. Out: their bytes, or spans of them; and files put there or removed.
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

log = logging.getLogger(__name__)

WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Waits before a store that fails is asked again (our choice); what still fails then has failed."""


class Store:
    """A folder; may be shared by threads. `root` is its path without the protocol.

    Raises UserError of kind `no-store` where the URL names a kind of store that there is not, or whose package is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            hint = "name a folder or a URL as s3://bucket/path"
            raise UserError(
                f"no such kind of store: {error}", where=url, hint=hint, kind="no-store"
            ) from error

    def full_path(self, name: str) -> str:
        """A file's path, for messages."""
        return f"{self.root}/{name}"

    def read_file(self, name: str, *, missing: str, hint: str) -> bytes:
        """A small file whole. Raises UserError of kind `no-shards` where it is missing (`missing` and `do` say so), of kind
        `store-failed` where the store goes on failing."""
        try:
            return self._ask(name)
        except FileNotFoundError as error:
            raise UserError(missing, where=self.full_path(name), hint=hint, kind="no-shards") from error
        except Exception as error:  # every kind of store raises its own
            raise self.failure(name, error) from error

    def read_span(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a tar; whatever keeps them from coming costs the sample: UserError of kind `damaged-sample`."""
        where = self.full_path(name)
        try:
            span = self._ask(name, start=offset, end=offset + length)
        except FileNotFoundError as error:
            raise UserError("the shard is gone", where=where, kind="damaged-sample") from error
        except Exception as error:  # every kind of store raises its own
            raise UserError(
                f"the shard cannot be read: {_one_line(error)}", where=where, kind="damaged-sample"
            ) from error
        if len(span) != length:
            raise UserError(
                f"the shard ends within a sample at byte {offset}", where=where, kind="damaged-sample"
            )
        return span

    def list_folders(self, name: str) -> list[str]:
        """Names of the folders inside a folder, sorted; none where it is not there."""
        try:
            found = self.files.ls(self.full_path(name), detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # every kind of store raises its own
            raise self.failure(name, error) from error
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory"
        )

    def _ask(self, name: str, **span: int) -> bytes:
        """A file's bytes; a store that fails is asked again, unless it says that the file is not there."""
        content: bytes = self._again(name, lambda path: self.files.cat_file(path, **span))
        return content

    def _again(self, name: str, act: Callable[[str], Any]) -> Any:
        path = self.full_path(name)
        for wait_s in WAITS_S:
            try:
                return act(path)
            except FileNotFoundError:
                raise
            except Exception as error:  # every kind of store raises its own
                log.info("asking again in %g s for %s: %s", wait_s, path, _one_line(error))
                time.sleep(wait_s)
        return act(path)

    def list_files(self) -> list[str]:
        """Every file below the folder, by its path within it; as they stand now, whatever was listed before."""
        self.files.invalidate_cache()
        return sorted(path.removeprefix(self.root).lstrip("/") for path in self.files.find(self.root))

    def read_if_exists(self, name: str) -> bytes | None:
        """A small file whole, None where it is not there."""
        try:
            return self._ask(name)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where it is not there."""
        try:
            found: int = self._again(name, self.files.info)["size"]
            return found
        except FileNotFoundError:
            return None

    def put(self, path: Path, name: str) -> None:
        """Copy a local file there, whole or not at all. Whatever the store goes on raising comes through."""
        target = self.full_path(name)
        if not isinstance(self.files, LocalFileSystem):  # object stores show an object once it is whole
            self._again(name, lambda there: self.files.put_file(str(path), there))
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
        """Delete a file; one that is gone already is."""
        with suppress(FileNotFoundError):
            self._again(name, self.files.rm_file)

    def failure(self, name: str, error: Exception, what: str = "read") -> UserError:
        """The line for a store that goes on failing to be read (or written)."""
        text = f"the store cannot be {what}: {_one_line(error)}"
        hint = "check address, rights and network, then run it again"
        return UserError(text, where=self.full_path(name).rstrip("/"), hint=hint, kind="store-failed")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
