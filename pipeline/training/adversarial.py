"""Attacked pictures to train on (Madry et al., ICLR 2018)."""

import torch
from torch import nn
from torch.nn import functional

from pipeline.params_train import Adversarial
from pipeline.preprocess import Preprocess


def attacked(network: nn.Module, values: torch.Tensor, labels: torch.Tensor, settings: Adversarial, preprocess: Preprocess) -> torch.Tensor:
    """The pictures within reach that the network is most wrong about, as far as projected gradient descent finds them.

    Args:
        network: in training mode, in which it is left; it is attacked as it answers, in evaluation mode.
        values: normalised pictures, float (n, 3, size, size).
        labels: int (n,).
        settings: `eps` is in pixel values out of 255.
        preprocess: of the network: how far a pixel may go is counted before normalising.
    """
    mean, std = (values.new_tensor(of).view(1, 3, 1, 1) for of in preprocess.channels)
    reach = settings.eps / 255 / std
    low, high = torch.maximum(values - reach, -mean / std), torch.minimum(values + reach, (1 - mean) / std)
    # The last step has to be able to come from one edge to the other; 2.5 / steps is what Madry et al. take.
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
