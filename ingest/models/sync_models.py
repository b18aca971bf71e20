"""Who speaks and whether it is in sync, by the models that the configuration names: embedded, Light-ASD, SyncNet.

Goes in: what the clips of one source show and sound. Comes out: a `SpeakingFace` for each. The embedded models read lip
openings alone; a named one needs pictures, which are asked for clip by clip, so that one clip's are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.models.active_speaker import ActiveFace, ClipFaces, SpeakingFace, find_speaking_faces
from uniavgen.ingest.models.lip_sync import LipSync, lip_sync
from uniavgen.ingest.records import AUDIO_RATE


@dataclass(frozen=True)
class ClipFrames:
    """A clip's pictures uint8 [T, H, W, 3] RGB at 25 fps, and the boxes of each face track float [T, 4] in fractions of them
    (`lip_inputs.boxes_at` makes these from the 16 fps table), NaN where it is not seen."""

    pictures: np.ndarray
    boxes: Mapping[int, np.ndarray]


class SyncModels:
    """The named models load once, here. Raises UserError (missing-weights, wrong-weights) where a file is not theirs."""

    def __init__(self, config: SyncConfig, device: str = "cpu") -> None:
        self.config = config
        self._light_asd, self._syncnet = None, None
        if config.active_model == "light-asd":
            from uniavgen.ingest.models.light_asd import LightAsd

            self._light_asd = LightAsd(config.light_asd_weights, device)
        if config.model == "syncnet":
            from uniavgen.ingest.models.syncnet import SyncNet

            self._syncnet = SyncNet(config, device)

    @property
    def needs_pictures(self) -> bool:
        return self._light_asd is not None or self._syncnet is not None

    def read(
        self, clips: Sequence[ClipFaces], pictures: Callable[[int], ClipFrames] | None = None
    ) -> list[SpeakingFace]:
        """One answer per clip of one source; `pictures(index)` is called once for each clip where `needs_pictures`."""
        found = find_speaking_faces(clips, self.config)
        if not self.needs_pictures:
            return found
        assert pictures is not None
        return [self._look(clip, pictures(index), found[index]) for index, clip in enumerate(clips)]

    def _look(self, clip: ClipFaces, shown: ClipFrames, embedded: SpeakingFace) -> SpeakingFace:
        active, sync = embedded.active, embedded.sync
        if self._light_asd is not None:
            active = self._named_speaker(clip, shown)
            if active.main != embedded.active.main:
                gap = clip.gaps.get(active.main) if active.main is not None else None
                sync = LipSync() if gap is None else lip_sync(gap, clip.pcm, self.config)
        if self._syncnet is not None:
            box = shown.boxes.get(active.main) if active.main is not None else None
            sync = LipSync() if box is None else self._syncnet.lip_sync(shown.pictures, box, clip.pcm)
        return SpeakingFace(active, sync)

    def _named_speaker(self, clip: ClipFaces, shown: ClipFrames) -> ActiveFace:
        assert self._light_asd is not None
        margin = self.config.max_shift_ms * AUDIO_RATE // 1000
        within = clip.pcm[margin : len(clip.pcm) - margin]
        return self._light_asd.find_active_face(shown.pictures, shown.boxes, within, clip.largest)
