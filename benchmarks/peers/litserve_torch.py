"""Plain LitServe: micro-batches of up to 16 within 5 ms, PyTorch."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from fastapi import Request
from PIL import Image

from pipeline.network import model
from pipeline.preprocess import Preprocess

PACKAGE = Path(os.environ["PACKAGE"])


class Unmask(litserve.LitAPI):
    """The network, as LitServe wants it."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.preprocess, self.device_name = Preprocess.load(PACKAGE), device
        self.network = torch.nn.Module.to(model.load(PACKAGE / "model"), device)

    def decode_request(self, request: Request) -> np.ndarray:
        """The network's input, from a form that LitServe has parsed already: it does so because of the type annotation."""
        return self.preprocess.pixels(Image.open(io.BytesIO(request["image"].file.read())).convert("RGB"))

    def predict(self, batch: Any) -> Any:
        """The probabilities of fake."""
        with torch.inference_mode():
            values = torch.from_numpy(self.preprocess.normalise(np.stack(batch))).to(self.device_name)
            return torch.softmax(self.network(values).logits, 1)[:, 1].tolist()

    def encode_response(self, output: float) -> dict[str, float]:
        """The answer."""
        return {"probability_fake": output}


if __name__ == "__main__":
    server = litserve.LitServer(Unmask(max_batch_size=16, batch_timeout=0.005), accelerator="cuda" if torch.cuda.is_available() else "cpu")
    server.run(port=int(sys.argv[1]), host="127.0.0.1", num_api_servers=int(os.environ["WORKERS"]), generate_client_file=False)
