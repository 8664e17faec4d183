"""A loaded package: pictures in, verdicts out. The service, batch scoring and the export's own check all go through here."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

import numpy as np

from pipeline.calibration import probability
from pipeline.images import Picture, statistics
from pipeline.package import Package, Thresholds, verify
from pipeline.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.explain import Explanation

log = logging.getLogger(__name__)

Verdict = Literal["real", "fake", "uncertain"]

TOO_SMALL = 64
TOO_DARK = 30.0
TOO_BLURRY = 8.0
"""Below these (pixels of the shorter side, mean luma, variance of the Laplacian) a picture holds too little for a sound verdict."""


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one picture.

    Attributes:
        probability_fake: calibrated, 0..1.
        verdict: `uncertain` between the package's two thresholds.
        warnings: what makes the answer less reliable: too_small, too_blurry, too_dark.
        embedding: float32 (d,), the model's view of the picture.
        statistics: see pipeline.images.statistics.
    """

    probability_fake: float
    verdict: Verdict
    warnings: list[str]
    embedding: np.ndarray
    statistics: dict[str, float]


class Runtime(Protocol):
    """Something that runs the network."""

    name: str

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 3, size, size) -> logits float32 (n, 2) and embeddings float32 (n, d)."""


class Detector:
    """A verified package on a device."""

    def __init__(self, package: Package, runtime: Runtime) -> None:
        self.package, self.runtime = package, runtime
        self.preprocess = Preprocess.load(package.path)
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._loaded: PreTrainedModel | None = None

    @classmethod
    def load(cls, folder: Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> Self:
        """Verify a package and load it: on a GPU through PyTorch in bfloat16, on the CPU through OpenVINO in float32.

        Raises:
            PackageError: if the package is not whole.
        """
        package = verify(folder)
        if device == "cuda" or (device == "auto" and has_gpu()):
            return cls(package, TorchRuntime(folder / "model"))
        if device == "auto":
            log.info("there is no GPU here: the model runs on the CPU")
        return cls(package, OpenVinoRuntime(folder / "graph" / "openvino.xml"))

    def predict(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Judge pictures as one batch. Safe to call from several threads; they take turns."""
        if not pictures:
            return []
        values = self.preprocess.normalise(np.stack([self.preprocess.pixels(picture.rgb) for picture in pictures]))
        with self._lock:
            logits, embeddings = self.runtime(values)
        meta = self.package.meta
        probabilities = probability(logits[:, 1] - logits[:, 0], meta.temperature)
        answers = []
        for picture, fake, embedding in zip(pictures, probabilities.tolist(), embeddings, strict=True):
            seen = statistics(picture)
            answers.append(Prediction(fake, verdict(fake, meta.thresholds), warnings(seen), embedding, seen))
        return answers

    def explain(self, picture: Picture) -> "Explanation":
        """Where the model looked in a picture. Runs the network itself, because the exported graph gives no attention; slower."""
        from pipeline.explain import explain

        return explain(self._network(), self.preprocess.normalise(self.preprocess.pixels(picture.rgb)[None]))

    def _network(self) -> "PreTrainedModel":
        """The network on the CPU, read at the first explanation: importing torch takes seconds that a verdict does not need."""
        from pipeline import model

        with self._loading:
            if self._loaded is None:
                self._loaded = model.load(self.package.path / "model")
        return self._loaded


class OpenVinoRuntime:
    """The exported graph on the CPU."""

    def __init__(self, graph: Path) -> None:
        import openvino

        # Left alone, OpenVINO takes bfloat16 where the processor has it, and answers would change from host to host.
        self._model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.name = "openvino f32 on CPU"

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        result = self._model(values)
        return result[0], result[1]


class TorchRuntime:
    """The network itself on a GPU."""

    def __init__(self, folder: Path) -> None:
        import torch

        from pipeline.explain import WithEmbedding

        self._torch = torch
        self._model = WithEmbedding.load(folder).to("cuda", torch.bfloat16)
        self.name = f"torch bf16 on {torch.cuda.get_device_name()}"

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        with self._torch.inference_mode():
            logits, embeddings = self._model(self._torch.from_numpy(values).to("cuda", self._torch.bfloat16))
        return logits.float().cpu().numpy(), embeddings.float().cpu().numpy()


def has_gpu() -> bool:
    """Whether there is a GPU to run on. Looks for the driver first: importing torch to hear `no` takes seconds."""
    if not Path("/proc/driver/nvidia/version").exists():
        return False
    import torch

    return torch.cuda.is_available()


def verdict(probability_fake: float, thresholds: Thresholds) -> Verdict:
    """The answer in a word."""
    if probability_fake >= thresholds.fake_above:
        return "fake"
    return "real" if probability_fake < thresholds.real_below else "uncertain"


def warnings(seen: dict[str, float]) -> list[str]:
    """What in a picture makes an answer less reliable."""
    found = {
        "too_small": min(seen["width"], seen["height"]) < TOO_SMALL,
        "too_dark": seen["brightness"] < TOO_DARK,
        "too_blurry": seen["blur"] < TOO_BLURRY,
    }
    return [name for name, holds in found.items() if holds]
