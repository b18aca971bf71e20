"""Measure videos and controls, resumably; then scores, orders of the controls, and slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniavgen.orchestration.evaluation.controls import CODEC, LEVELS, CodecPass, partners
from uniavgen.orchestration.evaluation.meters import (
    FaceConsistencyMeter,
    FaceFoundMeter,
    FaceMeter,
    FaceSource,
    IdentityMeter,
    ImageQualityMeter,
    Measured,
    Meter,
    MotionMeter,
    SpeechQualityMeter,
    SyncMeter,
    VoiceMeter,
    VoiceSource,
    VoiceStabilityMeter,
    WordMeter,
)
from uniavgen.orchestration.evaluation.results import (
    GENERATED,
    Result,
    ResultStore,
    result_key,
    result_of,
)
from uniavgen.orchestration.evaluation.videos import Item, Media, read_media
from uniavgen.shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from uniavgen.ingest.config import IngestConfig
    from uniavgen.orchestration.evaluation.config import EvaluateConfig

MACHINE_FAULTS = ("missing-weights", "wrong-weights", "no-ffmpeg", "no-gpu")
"""Kinds of errors that stop the evaluation in one line."""

OnVideo = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluator:
    """Meters and settings; `codec` is None if the ceiling through the codec is not measured."""

    meters: Sequence[Meter]
    ingest: IngestConfig
    config: EvaluateConfig
    store: ResultStore
    codec: CodecPass | None = None

    def close(self) -> None:
        """End the threads of face readers, which would keep the process alive."""
        for meter in self.meters:
            if isinstance(meter, FaceMeter):
                meter.source.close()

    def measure_generated(self, items: Sequence[Item], on_video: OnVideo | None = None) -> list[Result]:
        """Results of every meter for every video; what the store has is not measured again."""
        results = []
        for number, item in enumerate(items, start=1):
            read = _Reader(item, self)
            results += self._measure(read, GENERATED, lambda media: media, item.digest())
            if on_video:
                on_video(number, len(items))
        return results

    def measure_controls(self, items: Sequence[Item], on_video: OnVideo | None = None) -> list[Result]:
        """Results of every meter for real clips at every level. Raises UserError for fewer than two clips."""
        try:
            others = partners([str(item.conditions.get("speaker", item.name)) for item in items])
        except ValueError:
            raise UserError(
                f"controls need at least 2 real clips, there are {len(items)}",
                hint="give a corpus or a folder with more",
                kind="too-few-clips",
            ) from None
        results = []
        for number, item in enumerate(items, start=1):
            read, other = _Reader(item, self), _Reader(items[others[number - 1]], self)
            results += self._measure_levels(read, other)
            if on_video:
                on_video(number, len(items))
        return results

    def _measure_levels(self, read: _Reader, other: _Reader) -> list[Result]:
        digest, other_digest = read.item.digest(), other.item.digest()
        results = []
        for meter in self.meters:
            for level in LEVELS:
                inputs = (digest,) if level == "real" else (digest, other_digest, meter.control.says)

                def changed(media: Media, meter: Meter = meter, level: str = level) -> Media:
                    return media if level == "real" else meter.control.media(level, media, other.media())

                results += self._measure(read, level, changed, *inputs, meters=[meter])
        if self.codec is not None:
            results += self._measure(read, CODEC, self.codec, digest, self.codec.digest)
        return results

    def _measure(
        self,
        read: _Reader,
        level: str,
        change: Callable[[Media], Media],
        *inputs: str,
        meters: Sequence[Meter] | None = None,
    ) -> list[Result]:
        results: list[Result] = []
        changed: Media | None = None
        name = read.item.name
        for meter in self.meters if meters is None else meters:
            key = result_key(meter, level, *inputs, str(self.config.side))
            known = self.store.get(key)
            if known is not None and not known.error:
                results.append(known)
                continue
            try:
                if changed is None:
                    changed = change(read.media())
                measured: Measured = meter.measure(changed)
                result = result_of(key, name, level, meter.name, measured)
            except Exception as error:
                if isinstance(error, UserError) and error.kind in MACHINE_FAULTS:
                    raise  # no fault of the video: every other would fail too
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                text = first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
                result = Result(key, name, level, meter.name, error=text[:300])
            results.append(self.store.add(result))
        return results


class _Reader:
    """A video that is decoded when it is first needed; its error is raised every time it is needed."""

    def __init__(self, item: Item, evaluator: Evaluator) -> None:
        self.item, self._evaluator = item, evaluator
        self._media: Media | None = None
        self._error: UserError | None = None

    def media(self) -> Media:
        if self._error is not None:
            raise self._error
        if self._media is None:
            config = self._evaluator.config
            try:
                self._media = read_media(self.item, self._evaluator.ingest, config.side, config.max_seconds)
            except UserError as error:
                self._error = error
                raise
        return self._media


def build_meters(ingest: IngestConfig, config: EvaluateConfig) -> tuple[list[Meter], dict[str, str]]:
    """The meters that this machine can run, and the metrics that it cannot with the reason.

    Raises UserError for weights that are named and absent, or whose package is missing: before any work.
    """
    import importlib.util

    from uniavgen.orchestration.evaluation import named_networks as named

    weights = config.weights
    if weights.syncnet:
        named.require_path(weights.syncnet, "syncnet")
    faces, voices = FaceSource(ingest), VoiceSource(ingest)
    meters: list[Meter] = [
        WordMeter(ingest),
        SpeechQualityMeter(ingest),
        VoiceMeter(voices),
        VoiceStabilityMeter(voices),
        SyncMeter(faces, weights.syncnet),
        FaceFoundMeter(faces),
        IdentityMeter(faces),
        FaceConsistencyMeter(faces),
        MotionMeter(),
        ImageQualityMeter(),
    ]
    lacking = {} if weights.syncnet else {"LSE-C": "name evaluate.weights.syncnet", "LSE-D": "as LSE-C"}
    if weights.audiobox:
        meters.append(named.AestheticMeter(weights.audiobox))
    else:
        lacking |= {"PQ": "name evaluate.weights.audiobox", "CU": "as PQ"}
    if weights.dino:
        meters.append(named.DinoMeter(weights.dino, ingest.device))
    else:
        lacking["SC"] = "name evaluate.weights.dino"
    if weights.raft:
        meters.append(named.RaftMeter(weights.raft, ingest.device))
    else:
        lacking["DD"] = "name evaluate.weights.raft"
    if weights.musiq:
        meters.append(named.MusiqMeter(weights.musiq, ingest.device))
    else:
        lacking["IQ"] = "name evaluate.weights.musiq; IQ-brisque is another scale"
    if importlib.util.find_spec("distillmos"):
        meters.append(named.DistillMosMeter())
    else:
        lacking["DistillMOS"] = "install the package distillmos, which holds its weights"
    return _chosen(meters, config.meters), lacking


def _chosen(meters: list[Meter], names: Sequence[str]) -> list[Meter]:
    """The meters of these names; all without names. Raises UsageError for another name."""
    known = {meter.name: meter for meter in meters}
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown meter {name!r}", where="evaluate.meters", hint=f"one of: {', '.join(known)}"
            )
    return [known[name] for name in known if not names or name in names]
