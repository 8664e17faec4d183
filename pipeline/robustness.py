"""What happens to the verdicts when pictures are degraded, or attacked."""

import io
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from pipeline.preprocess import Preprocess

Change = Callable[[Image.Image], Image.Image]
EPSILONS = (1, 2, 4, 8)
"""Largest change of a pixel value by an attack, out of 255."""


def _stored(format_: str, quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format_, quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def _scaled(factor: float) -> Change:
    return lambda image: image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))), Image.Resampling.BICUBIC)


def _blurred(sigma: float) -> Change:
    return lambda image: Image.fromarray(cv2.GaussianBlur(np.asarray(image), (0, 0), sigma))


def _noisy(sigma: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, np.float32)
        noise = np.random.default_rng(0).normal(0, 255 * sigma, pixels.shape)
        return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))

    return change


def _both(first: Change, second: Change) -> Change:
    return lambda image: second(first(image))


DEGRADATIONS: dict[str, Change] = {
    **{f"jpeg{quality}": _stored("JPEG", quality) for quality in (80, 60, 40, 20)},
    "webp60": _stored("WEBP", 60),
    **{f"blur{sigma:g}": _blurred(sigma) for sigma in (0.5, 1.0, 2.0)},
    **{f"noise{sigma:g}": _noisy(sigma) for sigma in (0.02, 0.05)},
    "half": _scaled(0.5),
    "quarter": _scaled(0.25),
    "half_jpeg40": _both(_scaled(0.5), _stored("JPEG", 40)),
}
"""Name -> what is done to the picture before the detector sees it."""


def attacks(
    network: PreTrainedModel, preprocess: Preprocess, pixels: np.ndarray, labels: np.ndarray, threshold_score: float
) -> Iterator[tuple[str, int, float]]:
    """White-box attacks on the network: FGSM (Goodfellow et al., ICLR 2015) and PGD with 10 steps (Madry et al., ICLR 2018).

    Args:
        network: in evaluation mode.
        preprocess: of the network; the attack's size is in pixel values, before normalising.
        pixels: uint8 (n, size, size, 3).
        labels: int (n,), 1 for fake.
        threshold_score: difference of the logits from which an image counts as fake.

    Yields:
        Name of the attack, its eps (out of 255), and the accuracy that is left.
    """
    truth = torch.from_numpy(labels)
    for name, steps in (("fgsm", 1), ("pgd10", 10)):
        for eps in EPSILONS:
            scale = 1 / (255 * torch.tensor(preprocess.std).view(1, 3, 1, 1))
            called = []
            for start in range(0, len(pixels), 32):
                clean = torch.from_numpy(preprocess.normalise(pixels[start : start + 32]))
                attacked = _attack(network, clean, truth[start : start + 32], eps * scale, steps, preprocess)
                with torch.no_grad():
                    logits = network(pixel_values=attacked).logits
                called.append((logits[:, 1] - logits[:, 0]) >= threshold_score)
            yield name, eps, float((torch.cat(called) == (truth == 1)).float().mean())


def _attack(
    network: PreTrainedModel, clean: torch.Tensor, truth: torch.Tensor, bound: torch.Tensor, steps: int, preprocess: Preprocess
) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    low, high = -mean / std, (1 - mean) / std
    stride = bound if steps == 1 else bound * 2.5 / steps
    attacked = clean.clone()
    for _ in range(steps):
        attacked.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(network(pixel_values=attacked).logits, truth)
        (slope,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + stride * slope.sign()
        attacked = torch.max(torch.min(moved, clean + bound), clean - bound)
        attacked = torch.max(torch.min(attacked, high), low)
    return attacked.detach()
