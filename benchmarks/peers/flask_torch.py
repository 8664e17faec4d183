"""Plain Flask: gunicorn with eight threads per process, PyTorch, one image per request."""

from flask import Flask, request

from benchmarks.peers.torch_model import predict

app = Flask(__name__)


@app.post("/predict")
def answer() -> dict[str, float]:
    """The verdict on the form's `image`."""
    return predict(request.files["image"].read())
