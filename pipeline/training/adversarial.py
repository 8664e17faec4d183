"""Adversarial examples for training (Madry et al., ICLR 2018)."""

import torch
from torch import nn
from torch.nn import functional

from pipeline.params_train import Adversarial
from pipeline.preprocess import Preprocess


def attacked(network: nn.Module, values: torch.Tensor, labels: torch.Tensor, settings: Adversarial, preprocess: Preprocess) -> torch.Tensor:
    """Perturb images by projected gradient descent (PGD), so that the network is as wrong about them as possible.

    Args:
        network: in training mode, and left in it; during the attack it is in evaluation mode.
        values: normalised images, float (n, 3, size, size).
        labels: int (n,).
        settings: `eps` is in pixel values out of 255.
        preprocess: the network's; `eps` bounds pixel values before normalisation.
    """
    mean, std = (values.new_tensor(of).view(1, 3, 1, 1) for of in preprocess.channels)
    reach = settings.eps / 255 / std
    low, high = torch.maximum(values - reach, -mean / std), torch.minimum(values + reach, (1 - mean) / std)
    # The step size of Madry et al., 2.5 * eps / steps, lets the steps together cross the whole range; never more than eps at once.
    stride = reach * min(1.0, 2.5 / settings.steps)
    network.eval()
    attack = values + reach * (2 * torch.rand_like(values) - 1)
    for _ in range(settings.steps):
        attack = attack.detach().requires_grad_(True)
        loss = functional.cross_entropy(network(pixel_values=attack).logits.float(), labels)
        (slope,) = torch.autograd.grad(loss, attack)
        attack = torch.minimum(torch.maximum(attack + stride * slope.sign(), low), high)
    network.train()
    return attack.detach()
