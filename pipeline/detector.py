"""A loaded package: pictures in, verdicts out. The service, batch scoring and the export's own check all go through here."""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from PIL import Image

from pipeline import quality
from pipeline.explanation.activation import GraphActivation
from pipeline.explanation.attention import GraphAttention
from pipeline.explanation.heat import Explanation
from pipeline.explanation.overlay import region
from pipeline.face_weights import detector_for
from pipeline.faces import MARGIN, MOST_FACES, FaceBox, FaceDetector, framing, surroundings, upright
from pipeline.images import Picture, read, statistics
from pipeline.package import GRAPH, INT8, Package, PackageError, Thresholds, verify
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime, Runtime, TorchRuntime, has_bf16, has_gpu, has_vnni
from pipeline.runtime import read as read_graph

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Verdict = Literal["real", "fake", "uncertain"]


@dataclass(frozen=True)
class ScoredFace:
    """A face: box in pixels of the upright picture, clipped to it; the face detector's confidence; the probability of fake."""

    x: int
    y: int
    width: int
    height: int
    score: float
    probability_fake: float


@dataclass(frozen=True)
class Part:
    """An input of the network: a face with its surroundings, or the whole picture.

    Attributes:
        pixels: uint8 (size, size, 3), the network's input before it is normalised: the crop, turned upright if its face is tilted.
        crop: left, top, right, bottom in pixels of the picture.
        face: None for the whole picture.
        statistics: see pipeline.images.statistics.
        warnings: see pipeline.quality.warnings.
    """

    pixels: np.ndarray
    crop: tuple[int, int, int, int]
    face: FaceBox | None
    statistics: dict[str, float]
    warnings: list[str]


@dataclass(frozen=True)
class Prepared:
    """A picture reduced to what is judged: at least one part. `size` is its (width, height)."""

    parts: list[Part]
    size: tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """The detector's answer for one picture.

    Attributes:
        probability_fake: calibrated, 0..1; the highest if there are several faces.
        verdict: `uncertain` between the package's two thresholds, and if a face was needed but not found.
        warnings: what makes the answer less reliable, see pipeline.quality.
        embedding: float32 (d,), of the part that has this probability.
        statistics: of the same part, see pipeline.images.statistics.
        faces: the largest first; empty if none was found or detection is off.
    """

    probability_fake: float
    verdict: Verdict
    warnings: list[str]
    embedding: np.ndarray
    statistics: dict[str, float]
    faces: list[ScoredFace] = field(default_factory=list)


CONFIG = "model/config.json"
"""Of the network, inside a package."""


class Detector:
    """A verified package on a device. `card` is its model card in Markdown, None if it has none."""

    def __init__(self, package: Package, runtime: Runtime, faces: Path | None = None) -> None:
        """`faces` is YuNet's ONNX file: if given, each face is judged separately. Raises StageError if it cannot be loaded."""
        self.package, self.runtime = package, runtime
        self.preprocess = Preprocess.load(package.path)
        # Reused for every batch: the system zeroes new memory first, which takes longer than filling it.
        self._values = np.empty((runtime.batch, 3, self.preprocess.size, self.preprocess.size), np.float32)
        self._lock, self._loading, self._finder = threading.Lock(), threading.Lock(), threading.local()
        self._maps: list[GraphAttention | GraphActivation] = []
        card = package.path / "card.md"
        self.card = card.read_text() if card.is_file() else None
        self._loaded: PreTrainedModel | None = None
        self._faces = faces
        if faces is not None:
            self._finder.found = FaceDetector(faces)
        self._margin = face_margin(package, getattr(self._finder, "found", None))

    @classmethod
    def load(cls, folder: Path, device: Literal["auto", "cpu", "cuda"] = "auto", faces: Path | None = None) -> Self:
        """Verify a package and load it: on a GPU through PyTorch, on the CPU through OpenVINO.

        It runs in the fewest bits that the package allows and that are fast on this processor, provided that the golden examples still
        get their recorded answers.

        Args:
            folder: the package.
            device: `auto` takes a GPU if there is one.
            faces: the face detector to use, see pipeline.face_weights.detector_for.

        Raises:
            PackageError: if the package is incomplete or changed.
            StageError: if the face detector cannot be fetched or loaded.
        """
        package = verify(folder)
        faces = detector_for(package, faces)
        gpu = device == "cuda" or (device == "auto" and has_gpu())
        if device == "auto" and not gpu:
            log.info("there is no GPU here: the model runs on the CPU")
        for runtime in _reduced_precision(package, gpu):
            found = cls(package, runtime, faces)
            # Export measured what this precision costs; the golden examples check it on this very processor.
            try:
                found.check()
            except PackageError as error:
                log.warning("the model does not run in %s here: %s", runtime.precision, error)
                continue
            return found
        return cls(package, _torch(folder, bf16=False) if gpu else OpenVinoRuntime(folder / GRAPH), faces)

    @property
    def finds_faces(self) -> bool:
        """Whether each face is judged separately."""
        return self._faces is not None

    def predict(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Judge pictures as one batch. Safe to call from several threads."""
        return self.judge([self.prepare(picture) for picture in pictures])

    def prepare(self, picture: Picture) -> Prepared:
        """Find the faces of a picture, and scale what is to be judged; afterwards the picture is no longer needed."""
        faces = self._find(picture)
        size = picture.rgb.size
        if not faces:
            return Prepared([self._part(picture, (0, 0, *size), None, None if faces is None else 0)], size)
        return Prepared(
            [self._part(picture, surroundings(face, size, self._margin), face, len(faces)) for face in faces[:MOST_FACES]], size
        )

    def judge(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Judge prepared pictures as one batch. Safe to call from several threads; they take turns."""
        parts = [part for one in prepared for part in one.parts]
        if not parts:
            return []
        most = self.runtime.batch
        chunks = [np.stack([part.pixels for part in parts[start : start + most]]) for start in range(0, len(parts), most)]
        with self._lock:
            found = [self.runtime(self.preprocess.normalise(chunk, self._values[: len(chunk)])) for chunk in chunks]
        logits, embeddings = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        probabilities = self.package.meta.probability(logits[:, 1] - logits[:, 0])
        rows = iter(zip(parts, probabilities.tolist(), embeddings, strict=True))
        return [self._answer(list(islice(rows, len(one.parts))), one.size) for one in prepared]

    def check(self) -> None:
        """Judge the package's golden examples, as whole images, as at export.

        Raises:
            PackageError: naming the first one whose answer is not the recorded one.
        """
        for path, golden in self.package.golden.items():
            picture = read(path)
            size = picture.rgb.size
            found = self.judge([Prepared([self._part(picture, (0, 0, *size), None, None)], size)])[0].probability_fake
            expected = golden.expected(self.runtime.precision)
            if not abs(found - expected) <= self.package.meta.golden_tolerance:
                raise PackageError(f"the golden example {path.name} gets {found:.4f}; {expected:.4f} was recorded")

    def explain(self, prepared: Prepared) -> tuple[Explanation, dict[str, float]]:
        """Where the model looked in a prepared picture; if it has several faces, in the most suspicious one.

        Returns:
            The heat map, and the part of the picture that it covers (pipeline.explanation.overlay.region).
        """
        part = prepared.parts[0]
        if len(prepared.parts) > 1:
            scores = [answer.probability_fake for answer in self.judge([Prepared([part], prepared.size) for part in prepared.parts])]
            part = prepared.parts[int(np.argmax(scores))]
        found = self._explain(self.preprocess.normalise(part.pixels[None]))
        if part.face is not None and part.face.turned:
            found = found.turned(part.face.tilt)
        return found, region(prepared.size, self.preprocess.keep_aspect, part.crop)

    def _find(self, picture: Picture) -> list[FaceBox] | None:
        """The faces, largest first; None without a face detector."""
        if self._faces is None:
            return None
        if not hasattr(self._finder, "found"):  # one per thread: it is not thread-safe
            self._finder.found = FaceDetector(self._faces)
        found: list[FaceBox] = self._finder.found.find(picture.pixels)
        return found

    def _part(self, picture: Picture, crop: tuple[int, int, int, int], face: FaceBox | None, faces: int | None) -> Part:
        shown = picture if face is None else replace(picture, rgb=picture.rgb.crop(crop))
        seen = statistics(shown)
        judged = shown.rgb if face is None else Image.fromarray(upright(picture.pixels, crop, face))
        return Part(self.preprocess.pixels(judged), crop, face, seen, quality.warnings(seen, shown, faces))

    def _answer(self, rows: list[tuple[Part, float, np.ndarray]], size: tuple[int, int]) -> Prediction:
        part, fake, embedding = max(rows, key=lambda row: row[1])
        meta = self.package.meta
        needless = "no_face" not in part.warnings or meta.trained_on == "whole"
        said = verdict(fake, meta.thresholds) if needless else "uncertain"
        faces = [_scored(other.face, size, score) for other, score, _ in rows if other.face is not None]
        return Prediction(fake, said, part.warnings, embedding, part.statistics, faces)

    def _explain(self, values: np.ndarray) -> Explanation:
        """The heat map of one input. What it needs is loaded on first use: verdicts should not pay for its memory and seconds."""
        with self._loading:
            if not self._maps:
                # `dvc repro` may have put another package there meanwhile, whose map would be shown with the verdict of this one.
                self.package.check(GRAPH, Path(GRAPH).with_suffix(".bin").as_posix(), CONFIG)
                graph = self.runtime.graph if isinstance(self.runtime, OpenVinoRuntime) else read_graph(self.package.path / GRAPH)
                # In 8 bits, the small differences that Grad-CAM relies on are rounding errors.
                exact = read_graph(self.package.path / GRAPH) if self.runtime.precision == "int8" else graph
                config = json.loads((self.package.path / CONFIG).read_text())
                self._maps = [GraphAttention(graph, config), GraphActivation(exact)]
        found = next(filter(None, (look(values) for look in self._maps)), None)
        return found if found is not None else self._explain_with_gradients(values)

    def _explain_with_gradients(self, values: np.ndarray) -> Explanation:
        from pipeline.explanation.explain import explain
        from pipeline.network import model

        with self._loading:
            if self._loaded is None:
                self._loaded = model.load(self.package.path / "model")
        return explain(self._loaded, values)


def face_margin(package: Package, finder: FaceDetector | None) -> float:
    """How much to cut out around a face, see pipeline.faces.surroundings: as the training images show it, as far as that is known."""
    known = package.meta.face_margin
    if known is None and finder is not None:  # packed without a face detector; its golden examples are images like those of the training
        known = framing(finder, (read(path).pixels for path in package.golden))
    return MARGIN if known is None else known


def verdict(probability_fake: float, thresholds: Thresholds) -> Verdict:
    """The verdict on a calibrated probability."""
    if probability_fake >= thresholds.fake_above:
        return "fake"
    return "real" if probability_fake < thresholds.real_below else "uncertain"


def _scored(face: FaceBox, size: tuple[int, int], probability_fake: float) -> ScoredFace:
    left, top = max(0, round(face.x)), max(0, round(face.y))
    right, bottom = min(size[0], round(face.x + face.width)), min(size[1], round(face.y + face.height))
    return ScoredFace(left, top, max(0, right - left), max(0, bottom - top), face.score, probability_fake)


def _reduced_precision(package: Package, gpu: bool) -> Iterator[Runtime]:
    """Runtimes that are faster here than 32 bits, the fastest first."""
    meta, folder = package.meta, package.path
    if gpu:
        if meta.bf16:
            yield _torch(folder, bf16=True)
        return
    if meta.int8 and has_vnni():
        yield OpenVinoRuntime(folder / INT8)
    if meta.bf16 and has_bf16():
        yield OpenVinoRuntime(folder / GRAPH, bf16=True)


def _torch(folder: Path, bf16: bool) -> TorchRuntime:
    return TorchRuntime.load(folder / "model", bf16, Preprocess.load(folder).size)
