"""The model package: one folder with everything that a server needs, without training code or pickles."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

META = "package.json"
FORMAT = 1
PACKAGE = Path("models/package")
"""Where `dvc repro` leaves the package."""
STARTER = Path("models/starter")
"""The package that ships with the code: served until another one is made."""

GOLDEN = "golden"
GOLDEN_TOLERANCE = 0.02
"""Of a golden example's probability. Between processors, float32 differs by 1e-4 and bfloat16 by 0.01; a wrong label order, graph or
preprocessing differs by more."""

GRAPH, INT8, ONNX = "graph/openvino.xml", "graph/int8.xml", "graph/model.onnx"
"""In 32 bits; in 8 bits, if that costs next to no accuracy; for other runtimes."""

REFERENCE = "reference{}.parquet"
"""What drift compares traffic with, a file per precision: 32 bits without suffix, `-int8`, `-bf16`."""

FACES = "faces.onnx"
"""The face detector that cuts faces out of uploads, if the training images show faces."""


class PackageError(ValueError):
    """A package is missing, incomplete, changed, or of another format. The message names the file."""


class Thresholds(BaseModel):
    """Bounds on the calibrated probability of fake, all chosen on the validation part.

    Attributes:
        f1: gives the highest F1. At or above it, an image counts as fake in the reported figures.
        fpr1, fpr5: give false-positive rates of 1% and 5%.
        real_below, fake_above: the verdict is `uncertain` between them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    f1: float
    fpr1: float
    fpr5: float
    real_below: float
    fake_above: float


class Calibration(BaseModel):
    """What makes probabilities of a network's scores, fitted on the validation part.

    Attributes:
        temperature, bias: see `probability`.
        fake_share: share of fakes, 0..1, among the images of the fit: the probabilities hold for this share.
    """

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(gt=0)
    bias: float = 0.0
    fake_share: float = Field(default=0.5, ge=0, le=1)

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n,), logit of fake minus logit of real -> calibrated probabilities of fake (n,): sigmoid(score / temperature + bias)."""
        scaled = np.asarray(scores, np.float64) / self.temperature + self.bias
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))


class PackageMeta(Calibration):
    """package.json: the calibration, and besides:

    Attributes:
        format: version of this layout.
        created: UTC, ISO 8601.
        labels: output index -> class name.
        thresholds: see Thresholds.
        figures: of the test part, name -> {value, low, high}.
        lineage: data_md5, splits_md5, git_commit, git_dirty, dvc_lock, run_id; null where unknown.
        files: path inside the package -> SHA-256.
        trained_on: `whole` images of any kind: a picture without a detected face gets a verdict like any other; or pictures of
            `faces`: such a picture gets `uncertain`.
        face_margin: how much to crop around a face, so that the network sees it in the size it learned, see
            pipeline.faces.surroundings; None if that was not measured.
        bf16: whether it may run in bfloat16 on a GPU or CPU that supports it, as measured at export.
        int8: whether a CPU that is fast in 8-bit integers may run it in them, as measured at export.
        golden_tolerance: how far a golden example's probability may be from the recorded one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    created: str
    labels: dict[str, str]
    thresholds: Thresholds
    figures: dict[str, dict[str, float | None]]
    lineage: dict[str, Any]
    files: dict[str, str]
    trained_on: Literal["whole", "faces"] = "whole"
    face_margin: float | None = Field(default=None, ge=0)
    bf16: bool = True
    int8: bool = False
    golden_tolerance: float = GOLDEN_TOLERANCE


class Golden(BaseModel):
    """A picture with a recorded answer, so that a change of the answer is noticed.

    Attributes:
        label: real or fake.
        probability_fake: the answer in 32 bits at export.
        int8: the answer in 8 bits, which may deviate more than bfloat16 does; None without an 8-bit graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    probability_fake: float
    int8: float | None = None

    def expected(self, precision: str) -> float:
        """The recorded probability that holds for a runtime of this precision."""
        return self.int8 if precision == "int8" and self.int8 is not None else self.probability_fake


@dataclass(frozen=True)
class Package:
    """A package whose files match their digests."""

    path: Path
    meta: PackageMeta

    @property
    def golden(self) -> dict[Path, Golden]:
        """Golden examples: image file -> its label and recorded answer."""
        listed = json.loads((self.path / GOLDEN / "golden.json").read_text())
        return {self.path / GOLDEN / name: Golden.model_validate(example) for name, example in listed.items()}

    def check(self, *names: str) -> None:
        """Compare files of the package with their digests. Raises PackageError, naming the first that is missing or was changed."""
        for name in names:
            if not (self.path / name).is_file():
                raise PackageError(f"{self.path / name} is missing from the package")
            if _sha256(self.path / name) != self.meta.files.get(name):
                raise PackageError(f"{self.path / name} was changed after the package was made: its SHA-256 differs from the recorded one")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of package.json, which holds the digest of every other file: it identifies exactly this package."""
        return _sha256(self.path / META)


def seal(folder: Path, meta: dict[str, Any]) -> Package:
    """Write package.json with the digest of every file in the folder. `meta` has the fields of PackageMeta except format and files."""
    files = {
        path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != META
    }
    content = PackageMeta(format=FORMAT, files=files, **meta)
    (folder / META).write_text(content.model_dump_json(indent=2) + "\n")
    return Package(folder, content)


def verify(folder: Path) -> Package:
    """Read a package and check every file against its digest.

    Raises:
        PackageError: naming the first file that is missing, changed or not listed.
    """
    path = folder / META
    if not path.is_file():
        raise PackageError(f"{folder} is not a model package: it has no {META}. `dvc repro` writes one to models/package")
    try:
        meta = PackageMeta.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError) as error:
        raise PackageError(f"{path} cannot be read: {error}") from None
    if meta.format != FORMAT:
        raise PackageError(f"{path} has format {meta.format}; this version reads format {FORMAT}")
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {META}
    package = Package(folder, meta)
    package.check(*meta.files)
    if there - set(meta.files):
        raise PackageError(f"{folder / min(there - set(meta.files))} does not belong to the package")
    return package


def is_at(folder: Path, digest: str) -> bool:
    """Whether the package with this digest was put into the folder; its files are not checked."""
    return (folder / META).is_file() and _sha256(folder / META) == digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
