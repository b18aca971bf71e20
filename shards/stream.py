"""Reading shards for training: every sample at its place in an endless seeded order, by index instead of replay.

`position` counts samples through endless epochs. Which sample stands at a position is a pure function of
(manifest, split, seed, position): step s of a run takes positions [s * batch, (s + 1) * batch) whatever the number of
ranks, and a resumed run continues at any position without reading what went before.
"""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Any

import fsspec

from shards.errors import UserError
from shards.sample import Sample, from_members

INDEX_VERSION = 1


class SampleStream:
    """The samples of one split, uniformly shuffled within every epoch (the whole split is the shuffle buffer).

    `root` is a corpus's `shards` folder, local or any fsspec URL. Raises UserError where there are no shards, the split
    is empty, or an index is of another version.
    """

    def __init__(self, root: str, split: str = "train", seed: int = 0) -> None:
        self.split, self.seed = split, seed
        self._files, self._root = fsspec.core.url_to_fs(str(root))
        manifest = self._json("manifest.json", missing="no shards here", do="write them: uniavgen shard --corpus DIR")
        self._spans: list[tuple[str, int, int]] = []
        self.keys: list[str] = []
        for shard in manifest["shards"]:
            if shard["split"] == split:
                index = self._json(f"{shard['name']}.index.json", missing="a shard has no index", do="run uniavgen shard again")
                if index.get("version") != INDEX_VERSION:
                    raise UserError(
                        f"index version {index.get('version')} is unknown", where=shard["name"], do="write shards anew"
                    )
                self._spans += [(shard["name"], entry["offset"], entry["length"]) for entry in index["samples"]]
                self.keys += [entry["key"] for entry in index["samples"]]
        if not self._spans:
            raise UserError(f"the {split} split is empty", where=root, do="loosen the policy or add videos, then shard again")

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._spans)

    def sample_at(self, position: int) -> Sample:
        """The sample at a position of the endless order. Raises UserError naming the shard where it is damaged."""
        epoch, place = divmod(position, len(self._spans))
        return self._read(_epoch_order(len(self._spans), self.seed, epoch)[place])

    def sample_named(self, key: str) -> Sample:
        """The sample of that key. Raises UserError where the split has none."""
        if key not in self.keys:
            raise UserError(f"no sample {key} in split {self.split}", where=self._root, do=f"the first one is {self.keys[0]}")
        return self._read(self.keys.index(key))

    def _read(self, place: int) -> Sample:
        shard, offset, length = self._spans[place]
        data = self._files.cat_file(f"{self._root}/{shard}", start=offset, end=offset + length)
        return from_members(_read_members(data, shard))

    def _json(self, name: str, *, missing: str, do: str) -> dict[str, Any]:
        path = f"{self._root}/{name}"
        try:
            content: dict[str, Any] = json.loads(self._files.cat_file(path))
        except FileNotFoundError as error:
            raise UserError(missing, where=path, do=do, kind="no-shards") from error
        except ValueError as error:
            raise UserError("the file is damaged", where=path, do="run uniavgen shard again") from error
        return content


@lru_cache(maxsize=2)
def _epoch_order(samples: int, seed: int, epoch: int) -> list[int]:
    """A uniform permutation that depends on nothing but its arguments."""
    import numpy as np

    order: list[int] = np.random.default_rng([seed, epoch]).permutation(samples).tolist()
    return order


def _read_members(data: bytes, shard: str) -> dict[str, Any]:
    """One sample's members out of its span of the tar, by webdataset's own reader."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    try:
        # webdataset wants to know of every member which file it is from
        members_of = ({**member, "__url__": shard} for member in tar_file_iterator(io.BytesIO(data)))
        samples = list(group_by_keys(members_of))
    except Exception as error:  # tarfile and webdataset raise many kinds; each means the same here
        raise UserError(f"a sample cannot be read: {error}", where=shard, kind="damaged-sample") from error
    if len(samples) != 1:
        raise UserError(f"an index entry covers {len(samples)} samples", where=shard, kind="damaged-sample")
    members: dict[str, Any] = samples[0]
    return members
