"""The change of an image's pixels that misleads a network: FGSM (Goodfellow et al., ICLR 2015) and PGD (Madry et al., ICLR 2018)."""

import torch
from torch import nn
from torch.nn import functional

from pipeline.preprocess import Preprocess


def attack(
    network: nn.Module,
    preprocess: Preprocess,
    clean: torch.Tensor,
    truth: torch.Tensor,
    eps: float,
    steps: int,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the change from the signs of the loss's gradients.

    Args:
        network: in evaluation mode.
        preprocess: the network's.
        clean: RGB in 0..1, float (n, 3, size, size).
        truth: int (n,), 1 for fake.
        eps: largest change of a pixel value, out of 255.
        steps: 1 is FGSM; more is PGD.
        start: float (n, 3, size, size), the change that the first step starts from, within `eps`; none by default.

    Returns:
        float (n, 3, size, size), to be added to `clean`, which stays in 0..1.
    """
    bound = eps / 255
    # The step size of Madry et al., 2.5 * eps / steps, lets the steps together cross the whole range; never more than eps at once.
    stride = bound * min(1.0, 2.5 / steps)
    change = torch.zeros_like(clean) if start is None else (clean + start).clamp(0, 1) - clean
    for _ in range(steps):
        change.requires_grad_(True)
        logits = network(pixel_values=preprocess.standardise(clean + change)).logits.float()
        (slope,) = torch.autograd.grad(functional.cross_entropy(logits, truth), change)
        change = (change.detach() + stride * slope.sign()).clamp(-bound, bound)
        change = (clean + change).clamp(0, 1) - clean
    return change
