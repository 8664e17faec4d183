"""RGB picture -> model input. The settings are saved with the model, so that training and serving see the same pixels."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # importing torch takes seconds, which a service on a CPU does not need
    import torch


class Preprocess(BaseModel):
    """Resize to a square and normalise as the model's transformers image processor does, but without cropping the margin as some do.

    Processors that resize to more than the model's input and crop the centre (DINOv2 256 to 224, MobileNetV2, ConvNeXt's `crop_pct`)
    show the model 77% of the square. Here it sees the whole square: a face fills its picture, and forgeries have seams at the borders
    too.

    Attributes:
        size: side of the model's input in pixels.
        keep_aspect: crop the central square, instead of squeezing the picture into a square.
        resample: Pillow's code of the interpolation (2 bilinear, 3 bicubic).
        mean, std: of red, green and blue, for pixel values scaled to 0..1.
        flip_channels: whether the model takes BGR, as MobileViT does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    keep_aspect: bool = False
    resample: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    flip_channels: bool = False

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """Take over the settings of a transformers image processor."""
        size = dict(processor.size)
        # A processor that does not crop, such as EfficientNet's, may still have a crop size, and one that does not normalise, a mean.
        crop = dict((getattr(processor, "do_center_crop", False) and processor.crop_size) or {})
        normalises = processor.do_normalize and processor.image_mean
        mean: Any = processor.image_mean if normalises else (0.0, 0.0, 0.0)
        std: Any = processor.image_std if normalises else (1.0, 1.0, 1.0)
        power = 2 if getattr(processor, "include_top", False) else 1  # EfficientNet's divides by the standard deviation twice
        # Its mean and deviation are of values from 0 to `scale`, minus `offset`; ours of values from 0 to 1.
        scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
        offset = 1 if getattr(processor, "rescale_offset", False) else 0
        return cls(
            size=int(crop.get("height") or size.get("height") or size["shortest_edge"]),
            keep_aspect="shortest_edge" in size,
            resample=int(processor.resample),
            mean=tuple((value + offset) / scale for value in mean),
            std=tuple(value**power / scale for value in std),
            flip_channels=bool(getattr(processor, "do_flip_channel_order", False)),
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 array of shape (size, size, 3). Both interpolations are antialiased."""
        if self.keep_aspect:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling(self.resample)))

    def normalise(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, size, size, 3) -> contiguous float32 (n, 3, size, size), in the model's channel order, written to `out` if given."""
        scale, shift = self._factors()
        pixels = pixels[..., ::-1] if self.flip_channels else pixels
        # Transposed while still bytes, then scaled in place: three times as fast as the obvious expression.
        moved = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        values = np.empty(moved.shape, np.float32) if out is None else out
        values[...] = moved
        values *= scale[:, None, None]
        values -= shift[:, None, None]
        return values

    def normalise_tensor(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """`normalise` on the pixels' own device, equal to the last bit: uint8 (n, size, size, 3) -> float32 (n, 3, size, size)."""
        scale, shift = self._factors()
        pixels = pixels.flip(-1) if self.flip_channels else pixels
        values = pixels.permute(0, 3, 1, 2).contiguous().float()
        return values.mul_(values.new_tensor(scale)[:, None, None]).sub_(values.new_tensor(shift)[:, None, None])

    def standardise(self, values: "torch.Tensor") -> "torch.Tensor":
        """`normalise` for RGB in 0..1 instead of bytes, equal up to rounding: float (n, 3, size, size) -> float (n, 3, size, size)."""
        mean, std = (values.new_tensor(of)[:, None, None] for of in self.channels)
        return ((values.flip(1) if self.flip_channels else values) - mean) / std

    def restore(self, values: "torch.Tensor") -> "torch.Tensor":
        """The inverse of `standardise`: float (n, 3, size, size) -> RGB in 0..1, float (n, 3, size, size)."""
        mean, std = (values.new_tensor(of)[:, None, None] for of in self.channels)
        found = values * std + mean
        return found.flip(1) if self.flip_channels else found

    @property
    def channels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """mean and std in the model's channel order."""
        return (self.mean[::-1], self.std[::-1]) if self.flip_channels else (self.mean, self.std)

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """What a byte is multiplied by, and what is subtracted then: float32, per channel of the model."""
        mean, std = (np.asarray(of, np.float32) for of in self.channels)
        return 1 / (255 * std), mean / std

    def save(self, folder: Path) -> None:
        """Write preprocess.json into the folder."""
        (folder / "preprocess.json").write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read preprocess.json from the folder."""
        return cls.model_validate_json((folder / "preprocess.json").read_text())
