"""Write and read one checkpoint: all ranks write at once, files are hashed while they are written.

A checkpoint appears whole or not at all. `RunFolder.begin` and `RunFolder.commit` make the folder;
DeepSpeed's own state is in its subfolder `STATE_TAG`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder, digest, write_tensors
from uniavgen.train.config import CheckpointConfig
from uniavgen.train.engine.collectives import all_gather_object

STATE_TAG = "state"
"""Subfolder of a checkpoint that holds DeepSpeed's own files."""
WRITERS = 3
"""Files that one rank writes at the same time: rank 0 has weights, optimizer state and random state."""
CHUNK_BYTES = 2**24
"""Bytes that are hashed and written at the same time. Small enough to stay in the CPU cache."""
SMALL_BYTES = 2**16
"""Below this many bytes, hashing in the same thread is faster than handing over to another one."""


def save_checkpoint(
    engine: Any,
    folder: RunFolder,
    step: int,
    state: Mapping[str, Any],
    keep: CheckpointConfig,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write the checkpoint of `step`.

    All ranks call this. Raises UserError on all ranks if the disk refuses on one.

    `tensors`: further safetensors files by name; each rank passes those that it writes.
    """
    first = dist.get_rank() == 0
    on_all_ranks(lambda: folder.begin(step) if first else None, folder, step)
    written = on_all_ranks(lambda: write_rank_files(engine, folder.part(step), tensors or {}), folder, step)
    digests = {name: sha256 for of_rank in written for name, sha256 in of_rank.items()}
    on_all_ranks(lambda: folder.commit(step, state, digests, keep) if first else None, folder, step)


def write_rank_files(engine: Any, part: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write this rank's files into `part`, several at once, and fsync them. All ranks call this.

    Returns SHA-256 by path relative to `part`. Raises OSError or SafetensorError if the disk refuses.
    """
    pending: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="checkpoint") as pool:

        def start_file(state_dict: Any, path: str) -> None:
            # nothing changes the state before all files are written
            name, write = str(Path(path).relative_to(part)), partial(torch.save, state_dict)
            pending[name] = pool.submit(write_hashed, Path(path), write)

        def write_safetensors(name: str) -> str:
            write_tensors(part / name, tensors[name])
            return digest(part / name)

        pending |= {name: pool.submit(write_safetensors, name) for name in tensors}
        # DeepSpeed's own checkpoint engine writes one file after the other and computes no digest
        engine.checkpoint_engine.save = start_file
        engine.save_checkpoint(str(part), tag=STATE_TAG, save_latest=False)
    return {name: sha256.result() for name, sha256 in pending.items()}


def on_all_ranks(action: Callable[[], Any], folder: RunFolder, step: int) -> list[Any]:
    """Results of `action` on every rank, in the order of ranks. All ranks call this.

    Raises UserError on all ranks if checkpoint `step` cannot be written on one of them.
    """
    result, failure = None, None
    try:
        result = action()
    except UserError as error:
        failure = error
    except (OSError, SafetensorError) as error:
        failure = UserError(
            f"checkpoint {step} cannot be written: {getattr(error, 'strerror', None) or error}",
            where=folder.checkpoints,
            hint="free space and run the same command again: it resumes from the checkpoint before",
            kind="save-failed",
        )
    outcomes = all_gather_object((result, failure))
    for _, failed in outcomes:
        if failed is not None:
            raise failed
    return [value for value, _ in outcomes]


def load_checkpoint(engine: Any, path: Path) -> None:
    """Restore model, optimizer and counters from a checkpoint folder whose digests were checked.

    Raises UserError if DeepSpeed cannot read it.
    """
    try:
        with path_without_wildcards(path) as plain:
            loaded, _ = engine.load_checkpoint(str(plain), tag=STATE_TAG)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, AssertionError) as error:
        loaded, reason = None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    else:
        reason = "files are missing"
    if loaded is None:
        raise UserError(
            f"the checkpoint cannot be read: {reason}",
            where=path,
            hint="its files are as they were written (the SHA-256 match): keep it, and run the same command "
            "again with the configuration and the release that wrote it",
            kind="unreadable-checkpoint",
        )


@contextmanager
def path_without_wildcards(path: Path) -> Iterator[Path]:
    """The same folder under a path without `*`, `?` and `[`, by a symbolic link if needed.

    DeepSpeed searches its own files by glob patterns that begin with the folder's path, so it finds nothing
    in a folder such as `[exp1] run`. Raises UserError if no folder for the link has a plain path.
    """
    if not _has_wildcards(path):
        yield path
        return
    homes = [home for home in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm") if os.path.isdir(home)]
    plain = [home for home in homes if not _has_wildcards(home)]
    if not plain:
        raise UserError(
            "DeepSpeed cannot read a folder whose path has *, ? or [",
            where=path,
            hint="set TMPDIR to a folder without them",
            kind="bad-path",
        )
    with tempfile.TemporaryDirectory(prefix="uniavgen-", dir=plain[0]) as home:
        link = Path(home) / "checkpoint"
        link.symlink_to(path.absolute(), target_is_directory=True)
        yield link


def _has_wildcards(path: str | Path) -> bool:
    return glob.escape(str(path)) != str(path)


def write_hashed(path: Path, write: Callable[[HashedFile], Any]) -> str:
    """Call `write` with a new open file, fsync it, and return the SHA-256 of its bytes. Raises OSError.

    `write` is a function such as `torch.save`. The digest is of what was meant to be written, nothing is read
    back.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hashing") as hashing, HashedFile(path, hashing) as file:
        write(file)
        return file.finish()


class HashedFile:
    """A new binary file that is hashed in a second thread while the disk takes each chunk.

    An OSError is kept until `finish`: PyTorch's C++ writer would replace it by an error of its own.
    """

    def __init__(self, path: Path, hashing: Executor) -> None:
        self._file, self._hashing, self._digest = path.open("wb"), hashing, hashlib.sha256()
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            # close() writes buffered bytes once more; `finish` raised already, or another error is being
            # raised
            if kind is None:
                raise

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes and return their number. The caller may change `data` afterwards."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            self._write_chunk(view[start : start + CHUNK_BYTES])
        return len(view)

    def flush(self) -> None:
        """Do nothing: `finish` flushes."""

    def finish(self) -> str:
        """Flush, fsync, and return the SHA-256 as hexadecimal.

        Raises OSError if the bytes are not on the disk.
        """
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _write_chunk(self, chunk: memoryview) -> None:
        if self._error is not None:
            return
        hashed = self._hashing.submit(self._digest.update, chunk) if len(chunk) > SMALL_BYTES else None
        try:
            self._file.write(chunk)
        except OSError as error:
            self._error = error
        finally:
            if hashed:
                hashed.result()  # the caller may reuse the chunk's memory from here on
            else:
                self._digest.update(chunk)
