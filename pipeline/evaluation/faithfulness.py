"""Tests whether heat maps show what matters to the model: deletion, insertion, and pointing at forgeries of known location."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.evaluation.metrics import Figure, group_weights, mean
from pipeline.evaluation.scoring import Subject, sample
from pipeline.explanation.explain import heat_maps
from pipeline.images import OWN, read
from pipeline.manifest import origins
from pipeline.params import Evaluate
from pipeline.training.dataset import pixels

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7)
"""Shares of the pixels that are undone or restored."""
LARGEST = 0.6
"""Largest forged share of a picture: if more was forged, pointing at it proves nothing."""
OTHER = 25.5
"""Mean difference of pixel values above which a real is taken for another picture, and not the one that the fake was made from."""
RANDOM = "random"


def faithfulness(subject: Subject, test: pd.DataFrame, settings: Evaluate) -> dict[str, Any] | None:
    """Evaluate the heat maps on up to `explain_images` fakes of the test part.

    Deletion (Petsiuk et al., BMVC 2018): mean probability of fake while pixels are undone, hottest first; low is good. Insertion: while
    they are restored, hottest first; high is good. An undone pixel is that of the picture that the fake was made from if the test part
    has it, or else blurred. Pointing (Zhang et al., ECCV 2016): share of the maps whose hottest point was forged, that is, differs from
    that picture.

    Returns:
        n; n_paired, fakes whose origin is known; n_masked, those of them that differ from it only in part; methods, each with deletion,
        insertion, pointing, and `vs_random`, the paired differences from random maps; `random`, those maps themselves; and `middle`, the
        pointing of a map that always names the centre of the picture. Metrics with intervals over groups. None if there is no fake.
    """
    fakes = test[test["label"] == "fake"]
    if fakes.empty:
        return None
    rows = sample(fakes, settings.explain_images, settings.seed)
    images = pixels(rows, subject.preprocess)
    weights = group_weights(rows["group"].to_numpy(), settings.bootstrap, settings.seed)
    rng = np.random.default_rng(settings.seed)
    sources = [_source(image, path, subject) for image, path in zip(images, origins(rows, test), strict=True)]
    masks = [None if source is None else changed(image, source) for image, source in zip(images, sources, strict=True)]
    known = np.array([mask is not None for mask in masks])
    measured: dict[str, dict[str, list[float]]] = {}
    for image, source, mask in tqdm(zip(images, sources, masks, strict=True), total=len(images), desc="explanations", unit="image"):
        found = {seen.method: seen.heat for seen in heat_maps(subject.network, subject.preprocess.normalise(image[None]))}
        found[RANDOM] = rng.random(next(iter(found.values())).shape, np.float32)
        undone = cv2.GaussianBlur(image, (0, 0), len(image) / 16) if source is None else source
        removed, restored = curves(subject, image, undone, list(found.values()))
        for name, one, other in zip(found, removed, restored, strict=True):
            kept = measured.setdefault(name, {"deletion": [], "insertion": [], "pointing": []})
            kept["deletion"].append(one)
            kept["insertion"].append(other)
            if name == RANDOM:  # hits the mask with a probability equal to its area
                kept["pointing"].append(0.0 if mask is None else float(mask.mean()))
            else:
                kept["pointing"].append(mask is not None and pointing_hit(found[name], mask))
    noise = measured.pop(RANDOM)
    paired = sum(source is not None for source in sources)
    result: dict[str, Any] = {"n": len(rows), "n_paired": paired, "n_masked": int(known.sum()), "methods": {}}
    for name, values in measured.items():
        against = {figure: list(np.subtract(values[figure], noise[figure])) for figure in values}
        result["methods"][name] = _figures(values, known, weights) | {"vs_random": _figures(against, known, weights)}
    centre: list[float] = [mask is not None and bool(mask[len(mask) // 2, len(mask) // 2]) for mask in masks]
    middle = {**noise, "pointing": centre}
    return result | {RANDOM: _figures(noise, known, weights), "middle": {"pointing": _figures(middle, known, weights)["pointing"]}}


def curves(subject: Subject, image: np.ndarray, undone: np.ndarray, heats: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean probability of fake under deletion and under insertion, for each heat map.

    Args:
        subject: the model under evaluation.
        image: uint8 (size, size, 3).
        undone: the same with the forgery undone.
        heats: maps of the image.
    """
    side, steps = image.shape[0], []
    for heat in heats:
        smooth = cv2.resize(heat, (side, side), interpolation=cv2.INTER_CUBIC)
        rank = np.empty(smooth.size, int)
        rank[np.argsort(-smooth.ravel(), kind="stable")] = np.arange(smooth.size)
        for share in SHARES:
            hot = (rank < share * smooth.size).reshape(side, side, 1)
            steps += [np.where(hot, undone, image), np.where(hot, image, undone)]
    probabilities = subject.probabilities(np.stack(steps)).reshape(len(heats), len(SHARES), 2).mean(1)
    return probabilities[:, 0].tolist(), probabilities[:, 1].tolist()


def changed(fake: np.ndarray, origin: np.ndarray) -> np.ndarray | None:
    """Where a fake differs from the picture that it was made from.

    Args:
        fake, origin: uint8 (size, size, 3), as the network sees them.

    Returns:
        bool (size, size), or None if nothing, or more than the share LARGEST, differs.
    """
    gap = np.abs(fake.astype(np.float32) - origin.astype(np.float32)).max(-1)
    smooth = cv2.GaussianBlur(gap, (0, 0), fake.shape[0] / 64)
    mask = smooth > max(1.0, 0.2 * float(smooth.max()))
    return mask if 0 < mask.mean() <= LARGEST else None


def pointing_hit(heat: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the centre of the hottest cell of a map lies in the mask."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    y, x = (int((index + 0.5) * side / cells) for index, side, cells in zip((row, column), mask.shape, heat.shape, strict=True))
    return bool(mask[y, x])


def _source(image: np.ndarray, path: str | None, subject: Subject) -> np.ndarray | None:
    """The picture that a fake was made from, or None if it is unknown or clearly another picture."""
    if path is None:
        return None
    source = subject.preprocess.pixels(read(Path(path), OWN).rgb)
    return source if np.abs(image.astype(np.float32) - source).mean() <= OTHER else None


def _figures(values: dict[str, list[float]], known: np.ndarray, weights: np.ndarray) -> dict[str, Figure]:
    found = {name: mean(np.array(values[name]), weights) for name in ("deletion", "insertion")}
    empty = Figure(value=None, low=None, high=None)
    return found | {"pointing": mean(np.array(values["pointing"])[known], weights[:, known]) if known.any() else empty}
