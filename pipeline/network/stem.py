"""A small vision transformer that learns forgery traces from scratch: a ViT whose patch embeddings come from convolutions.

A plain ViT embeds a patch with one linear map and learns slowly from a few thousand faces (Xiao et al., NeurIPS 2021, "Early
convolutions help transformers see better"). Traces of a forgery are faint and fine, so the convolutions also get the residual of the
image, that is, the image minus its smoothed copy. Importing this module registers the model type `stem_vit` with transformers.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

RESIDUAL_GAIN = 4.0
"""Scales the residual of a photograph to about the standard deviation of its pixels."""


class StemViTConfig(ViTConfig):
    """ViT's config; `patch_size`, a power of 2, is the stem's total stride; `stem_width` is its channels after the first convolution."""

    model_type = "stem_vit"
    stem_width: int = 32


class ConvStem(nn.Module):
    """Strided convolutions in place of ViT's patch projection."""

    def __init__(self, config: StemViTConfig) -> None:
        super().__init__()
        scale = config.patch_size
        steps = scale.bit_length() - 1 if isinstance(scale, int) else -1
        if scale != 2**steps:
            raise ValueError(f"patch_size is {scale}; a convolutional stem needs a power of 2")
        layers: list[nn.Module] = []
        channels = 2 * config.num_channels
        for step in range(steps):
            width = min(config.stem_width * 2**step, config.hidden_size)
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(channels, config.hidden_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float (n, 3, side, side) -> (n, patches, hidden_size)."""
        smooth = functional.avg_pool2d(pixel_values, 3, stride=1, padding=1, count_include_pad=False)
        both = torch.cat([pixel_values, RESIDUAL_GAIN * (pixel_values - smooth)], dim=1)
        return self.projection(self.layers(both)).flatten(2).transpose(1, 2)


class StemViTForImageClassification(ViTForImageClassification):
    """ViT with a convolutional stem."""

    config_class = StemViTConfig

    def __init__(self, config: StemViTConfig) -> None:
        super().__init__(config)
        self.vit.embeddings.patch_embeddings = ConvStem(config)  # type: ignore[assignment]
        self.post_init()


AutoConfig.register(StemViTConfig.model_type, StemViTConfig)
AutoModelForImageClassification.register(StemViTConfig, StemViTForImageClassification)
