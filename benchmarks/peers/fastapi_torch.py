"""Plain FastAPI: uvicorn, PyTorch, one image per request, in FastAPI's thread pool."""

from fastapi import FastAPI, UploadFile

from benchmarks.peers.torch_model import predict

app = FastAPI()


@app.post("/predict")
def answer(image: UploadFile) -> dict[str, float]:
    """The verdict on the form's `image`."""
    return predict(image.file.read())
