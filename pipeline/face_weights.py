"""Which face detector a package is used with: a file, the package's own, or YuNet, which is fetched once from its home."""

import hashlib
import logging
import os
import urllib.request
from functools import cache
from http.client import HTTPException
from pathlib import Path

from pipeline.errors import StageError
from pipeline.faces import FaceDetector
from pipeline.package import FACES, Package
from pipeline.staging import write
from pipeline.var import var_folder

log = logging.getLogger(__name__)

YUNET, NONE = Path("yunet"), Path("none")
"""Instead of a file: the one from `HOME`; no face detector."""

HOME = "https://github.com/ShiqiYu/libfacedetection.train/raw/dca340aa082c71081a68d17db8e58b33a58a914b/onnx/yunet_n_dynamic.onnx"
SHA256 = "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12"
MOST = 1_000_000
"""Bytes that are read at most; the file has 322,906."""
TIMEOUT = 5.0
"""Seconds without an answer after which the network counts as absent: a service that starts waits for this."""


def chosen_detector() -> Path | None:
    """What UNMASK_FACE_DETECTOR names, None if it is not set: the service and batch scoring judge the same faces."""
    return Path(os.environ["UNMASK_FACE_DETECTOR"]) if os.environ.get("UNMASK_FACE_DETECTOR") else None


def detector_for(package: Package, chosen: Path | None) -> Path | None:
    """The ONNX file of the face detector that a package is used with; None to judge whole images.

    Without a choice it is the package's own, or YuNet for a package that was trained on faces and has none. If that cannot be fetched,
    whole images are judged, and a warning is logged.

    Args:
        package: a verified package.
        chosen: an ONNX file, YUNET or NONE.

    Raises:
        StageError: if YUNET was chosen and cannot be fetched.
    """
    if chosen is not None:
        return None if chosen == NONE else located(chosen)
    if (package.path / FACES).is_file():
        return package.path / FACES
    if package.meta.trained_on == "whole":
        return None
    try:
        return located(YUNET)
    except StageError as error:
        log.warning("this model was trained on pictures of faces, and judges whole images: %s", error)
        return None


def located(detector: Path) -> Path:
    """The ONNX file: `detector` itself, unless that is YUNET. Fetches it if it is not in UNMASK_VAR; raises StageError if that fails."""
    if detector != YUNET:
        return detector
    path = var_folder() / f"yunet-{SHA256[:8]}.onnx"
    if not path.is_file():
        log.info("fetching the face detector YuNet from %s", HOME)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, _fetched())
        except (OSError, HTTPException) as error:
            raise StageError(
                f"face detector: YuNet cannot be fetched from {HOME}: {getattr(error, 'reason', error)}. "
                f"Download it on another machine, and save it as {path.resolve()}"
            ) from None
    return path


@cache
def loaded(detector: Path) -> FaceDetector:
    """The face detector of a process that has one thread. Raises StageError as `located` and FaceDetector do."""
    return FaceDetector(located(detector))


def identity(detector: Path | None) -> str:
    """8 hex digits of a face detector's content, `none` without one: for names of what it made. Raises StageError as `loaded` does."""
    if detector is None:
        return "none"
    loaded(detector)  # says what is wrong with a file that cannot be used
    return hashlib.sha256(located(detector).read_bytes()).hexdigest()[:8]


def _fetched() -> bytes:
    with urllib.request.urlopen(HOME, timeout=TIMEOUT) as response:
        data: bytes = response.read(MOST)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise OSError("what came is another file")
    return data
