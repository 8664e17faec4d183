"""Plain LitServe: micro-batches of up to 16 within 5 ms, PyTorch."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from PIL import Image

from pipeline import model
from pipeline.preprocess import Preprocess

PACKAGE = Path(os.environ["PACKAGE"])


class Unmask(litserve.LitAPI):
    """The network, as LitServe wants it."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.preprocess, self.network = Preprocess.load(PACKAGE), model.load(PACKAGE / "model")

    def decode_request(self, request: Any) -> np.ndarray:
        """The network's input."""
        return self.preprocess.pixels(Image.open(io.BytesIO(request["image"].file.read())).convert("RGB"))

    def predict(self, batch: Any) -> Any:
        """The probabilities of fake."""
        with torch.inference_mode():
            return torch.softmax(self.network(torch.from_numpy(self.preprocess.normalise(np.stack(batch)))).logits, 1)[:, 1].tolist()

    def encode_response(self, output: float) -> dict[str, float]:
        """The answer."""
        return {"probability_fake": output}


if __name__ == "__main__":
    litserve.LitServer(Unmask(max_batch_size=16, batch_timeout=0.005), accelerator="cpu").run(port=int(sys.argv[1]), host="127.0.0.1")
