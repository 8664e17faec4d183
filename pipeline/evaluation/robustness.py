"""How the verdicts hold up when images are degraded or attacked."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.errors import StageError
from pipeline.evaluation.metrics import figures, group_weights, judge_difference, mean, reported
from pipeline.evaluation.scoring import Subject, labels, pictures, sample
from pipeline.network import model
from pipeline.network.attack import attack
from pipeline.params import Evaluate
from pipeline.preprocess import Preprocess
from pipeline.training.dataset import pixels

Change = Callable[[Image.Image], Image.Image]
EPSILONS = (1, 2, 4, 8)
"""Largest change of a pixel value by an attack, out of 255."""
ATTACKS = {"fgsm": 1, "pgd10": 10}
"""Steps of FGSM and of PGD, which starts at the image itself."""

BATCH = 32
"""Images attacked at a time: bounds the memory."""

LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "turned": 32_766}
"""Longest side, in pixels, that a format can store, or that OpenCV can turn."""


def _stored(format_: str, quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        _bounded(image, LONGEST[format_]).save(buffer, format_, quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def _bounded(image: Image.Image, longest: int) -> Image.Image:
    """The image, scaled down if a side has more pixels."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    return image


def _scaled(factor: float) -> Change:
    return lambda image: image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))), Image.Resampling.BICUBIC)


def _blurred(sigma: float) -> Change:
    return lambda image: Image.fromarray(cv2.GaussianBlur(np.asarray(image), (0, 0), sigma))


def _noisy(sigma: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        values = np.asarray(image, np.float32)
        noise = np.random.default_rng(0).normal(0, 255 * sigma, values.shape)
        return Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))

    return change


def _retouched(image: Image.Image) -> Image.Image:
    """Smooth skin, sharp edges."""
    return Image.fromarray(cv2.bilateralFilter(np.asarray(image), 11, 80, 9))


def _tilted(degrees: float) -> Change:
    """Turned about the centre; what lies beyond the image mirrors it."""

    def change(image: Image.Image) -> Image.Image:
        pixels = np.asarray(_bounded(image, LONGEST["turned"]))
        height, width, _ = pixels.shape
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        return Image.fromarray(cv2.warpAffine(pixels, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))

    return change


def _in_turn(*changes: Change) -> Change:
    def change(image: Image.Image) -> Image.Image:
        for step in changes:
            image = step(image)
        return image

    return change


DEGRADATIONS: dict[str, Change] = {
    **{f"jpeg{quality}": _stored("JPEG", quality) for quality in (100, 80, 60, 40, 20)},
    "webp60": _stored("WEBP", 60),
    **{f"blur{sigma:g}": _blurred(sigma) for sigma in (0.5, 1.0, 1.5, 2.0, 3.0)},
    **{f"noise{sigma:g}": _noisy(sigma) for sigma in (0.01, 0.02, 0.05, 0.1)},
    "half": _scaled(0.5),
    "quarter": _scaled(0.25),
    "jpeg40_half": _in_turn(_scaled(0.5), _stored("JPEG", 40)),
    "retouched": _retouched,
    "tilt20": _tilted(20),
    # Enlarged on a screen, captured, scaled down again and saved by a messenger.
    "screenshot": _in_turn(_scaled(1.4), _scaled(1 / 1.4), _stored("JPEG", 75)),
}
"""Name -> what is done to an image before the detector sees it."""


def degraded(subject: Subject, test: pd.DataFrame, settings: Evaluate) -> dict[str, Any]:
    """Evaluate the model under each of DEGRADATIONS.

    Args:
        test: rows with `probability_fake`; `robustness_images` of them are degraded.

    Returns:
        n; clean: auc, balanced_accuracy; and for each degradation the same plus `drop` (of the AUC, with its 95% interval in `drop_low` and
        `drop_high`) and `flip_rate` (share of the images whose class changes). Null if a class is missing.
    """
    rows = sample(test, settings.robustness_images, settings.seed)
    truth, before, threshold = labels(rows), rows["probability_fake"].to_numpy(), subject.thresholds.f1
    seen = []
    for index in tqdm(range(len(rows)), desc="robustness", unit="image"):  # one picture at a time: they may have many megapixels
        (picture,) = pictures(rows.iloc[[index]])
        changed = [subject.preprocess.pixels(change(picture.rgb)) for change in DEGRADATIONS.values()]
        seen.append(subject.probabilities(np.stack(changed)))
    clean, weights = figures(truth, before, threshold), group_weights(rows["group"].to_numpy(), settings.bootstrap, settings.seed)
    result: dict[str, Any] = {"n": len(rows), "clean": _short(clean)}
    for name, after in zip(DEGRADATIONS, np.transpose(seen), strict=True):
        found = figures(truth, after, threshold)
        drop = judge_difference(truth, (before, threshold), (after, threshold), weights)["auc"]
        result[name] = _short(found) | {
            "drop": drop["value"],
            "drop_low": drop["low"],
            "drop_high": drop["high"],
            "flip_rate": reported(((before >= threshold) != (after >= threshold)).mean()),
        }
    return result


def attacked(subject: Subject, test: pd.DataFrame, settings: Evaluate) -> dict[str, Any]:
    """Accuracy under attack, with its interval, at each of EPSILONS.

    White-box attacks: FGSM and PGD (`fgsm`, `pgd10`). Transfer attack, computed on the model `transfer_from` instead:
    `transfer_pgd10`.

    Raises:
        StageError: if `transfer_from` is not a model.
    """
    rows = sample(test, settings.attack_images, settings.seed)
    images, truth = pixels(rows, subject.preprocess), labels(rows)
    weights = group_weights(rows["group"].to_numpy(), settings.bootstrap, settings.seed)
    runs = [(name, subject.network, subject.preprocess, images, steps) for name, steps in ATTACKS.items()]
    if settings.transfer_from:
        network, preprocess = attacker(settings.transfer_from)
        # Attack the part of the image that is judged: changes in the margins alone would have no effect.
        preprocess = preprocess.model_copy(update={"keep_aspect": subject.preprocess.keep_aspect})
        runs.append(("transfer_pgd10", network, preprocess, pixels(rows, preprocess), ATTACKS["pgd10"]))
    result: dict[str, Any] = {"n": len(rows)}
    clean, fakes = _unit(images), torch.tensor(truth)
    with tqdm(total=len(runs) * len(EPSILONS), desc="attacks", unit="attack") as progress:
        for name, network, preprocess, seen, steps in runs:
            left = {}
            for eps in EPSILONS:
                parts = zip(_unit(seen).split(BATCH), fakes.split(BATCH), strict=True)
                change = torch.cat([attack(network, preprocess, part, its, eps, steps) for part, its in parts])
                change = functional.interpolate(change, size=clean.shape[-2:], mode="bilinear", antialias=True)
                called = _probabilities(subject, (clean + change).clamp(0, 1)) >= subject.thresholds.f1
                left[f"eps{eps}"] = mean(called == (truth == 1), weights)
                progress.update()
            result[name] = left
    return result


def attacker(folder: Path) -> tuple[PreTrainedModel, Preprocess]:
    """Network and preprocessing of a package, or of a folder that training wrote. Raises StageError if there are none."""
    inner = folder / "model" if (folder / "model").is_dir() else folder
    try:
        return model.load(inner), Preprocess.load(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(f"evaluate.transfer_from: {folder} is neither a package nor a trained model: {reason}") from None


def _unit(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, size, size, 3) -> float32 (n, 3, size, size) in 0..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255


def _probabilities(subject: Subject, images: torch.Tensor) -> np.ndarray:
    """float (n, 3, size, size) in 0..1, not rounded to bytes -> probabilities of fake (n,)."""
    values = subject.preprocess.standardise(images).numpy()
    logits = np.concatenate([subject.runtime(values[start : start + 32])[0] for start in range(0, len(values), 32)])
    return subject.calibration.probability(logits[:, 1] - logits[:, 0])


def _short(found: dict[str, np.ndarray]) -> dict[str, float | None]:
    return {name: reported(found[name][0]) for name in ("auc", "balanced_accuracy")}
