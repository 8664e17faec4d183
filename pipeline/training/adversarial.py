"""Adversarial examples for training (Madry et al., ICLR 2018)."""

import torch
from torch import nn

from pipeline.network.attack import attack
from pipeline.params_train import Adversarial
from pipeline.preprocess import Preprocess


def attacked(network: nn.Module, values: torch.Tensor, labels: torch.Tensor, settings: Adversarial, preprocess: Preprocess) -> torch.Tensor:
    """Perturb images by projected gradient descent from a random start, so that the network is as wrong about them as possible.

    Args:
        network: in training mode, and left in it; during the attack it is in evaluation mode.
        values: normalised images, float (n, 3, size, size).
        labels: int (n,).
        settings: `eps` is in pixel values out of 255.
        preprocess: the network's; `eps` bounds pixel values before normalisation.
    """
    clean = preprocess.restore(values)
    start = settings.eps / 255 * (2 * torch.rand_like(clean) - 1)
    network.eval()
    change = attack(network, preprocess, clean, labels, settings.eps, settings.steps, start)
    network.train()
    return preprocess.standardise(clean + change)
