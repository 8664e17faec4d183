"""The network in PyTorch, float32, one image at a time, as most services run it."""

import io
import os
from pathlib import Path

import torch
from PIL import Image

from pipeline.network import model
from pipeline.preprocess import Preprocess

PACKAGE = Path(os.environ["PACKAGE"])
preprocess = Preprocess.load(PACKAGE)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
network = torch.nn.Module.to(model.load(PACKAGE / "model"), DEVICE)


def predict(data: bytes) -> dict[str, float]:
    """The probability that an image file shows a fake, not calibrated."""
    pixels = preprocess.pixels(Image.open(io.BytesIO(data)).convert("RGB"))
    with torch.inference_mode():
        logits = network(torch.from_numpy(preprocess.normalise(pixels[None])).to(DEVICE)).logits
    return {"probability_fake": float(torch.softmax(logits, 1)[0, 1])}
