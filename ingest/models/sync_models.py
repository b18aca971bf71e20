"""Active speaker and lip sync of a source's clips, by the models that the configuration names.

The embedded models read lip openings only. Light-ASD and SyncNet need video frames, which are requested one
clip at a time, so that one clip's frames are in memory at a time.
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
    """A clip's frames uint8 [T, H, W, 3] RGB at 25 fps, and the boxes of each face track float [T, 4] in
    fractions of the frame, NaN where it is not seen (`published_networks.interpolate_boxes` gives these from
    the 16 fps table).
    """

    frames: np.ndarray
    boxes: Mapping[int, np.ndarray]


class SyncModels:
    """The configured models, loaded once. Raises UserError (missing-weights, wrong-weights) for their
    files.
    """

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
    def needs_frames(self) -> bool:
        return self._light_asd is not None or self._syncnet is not None

    def measure(
        self, clips: Sequence[ClipFaces], frames_of: Callable[[int], ClipFrames] | None = None
    ) -> list[SpeakingFace]:
        """One result per clip of one source; `frames_of(index)` is called once for each clip if
        `needs_frames`.
        """
        embedded = find_speaking_faces(clips, self.config)
        if not self.needs_frames:
            return embedded
        assert frames_of is not None
        return [
            self._measure_clip(clip, frames_of(index), embedded[index]) for index, clip in enumerate(clips)
        ]

    def _measure_clip(self, clip: ClipFaces, video: ClipFrames, embedded: SpeakingFace) -> SpeakingFace:
        active, sync = embedded.active, embedded.sync
        if self._light_asd is not None:
            active = self._light_asd_speaker(clip, video)
            if active.main != embedded.active.main:
                gap = clip.gaps.get(active.main) if active.main is not None else None
                sync = LipSync() if gap is None else lip_sync(gap, clip.pcm, self.config)
        if self._syncnet is not None:
            box = video.boxes.get(active.main) if active.main is not None else None
            sync = LipSync() if box is None else self._syncnet.lip_sync(video.frames, box, clip.pcm)
        return SpeakingFace(active, sync)

    def _light_asd_speaker(self, clip: ClipFaces, video: ClipFrames) -> ActiveFace:
        assert self._light_asd is not None
        margin = self.config.max_shift_ms * AUDIO_RATE // 1000
        within = clip.pcm[margin : len(clip.pcm) - margin]
        return self._light_asd.find_active_face(video.frames, video.boxes, within, clip.largest)
