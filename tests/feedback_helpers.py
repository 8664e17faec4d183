"""Feedback with images that users let us keep."""

from pathlib import Path

from pipeline.monitoring import feedback
from tests.data_helpers import picture

SAID = {"version": "1", "verdict": "fake", "probability_fake": 0.9}


def kept(folder: Path, *ids: str, same: str = "") -> None:
    """A statement with an image for each id; those in `same` share one."""
    for number, id in enumerate(ids):
        picture(folder / "upload.png", seed=99 if id in same else number)
        probability = {"probability_fake": 0.1 * (number + 1)}
        feedback.record(
            folder / "var/feedback", id=id, label="fake", image=(folder / "upload.png").read_bytes(), client="a", **SAID | probability
        )
