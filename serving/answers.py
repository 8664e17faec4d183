"""The response bodies, one pydantic model each; /openapi.json is made from them."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.champion import Served
from pipeline.credentials import Credentials
from pipeline.detector import Prediction as Predicted
from pipeline.tracking import MODEL
from serving.trial import Trial

DIGITS = 6
"""Decimals of probabilities and thresholds alike, so that a client that compares them can follow the verdict."""

EXAMPLE_ID = "4792c59c-2378-40f5-b3ad-b5dab02126ad"
EXAMPLE_MODEL: dict[str, Any] = {
    "name": MODEL,
    "version": "2",
    "created": "2026-01-02T03:04:05+00:00",
    "run_id": "483e69c70dff42cb85a820fbf70a7260",
    "data_md5": "8e959940d6b1ed8c30ef0ab3599bd789",
    "git_commit": "f679211e6879bada01bdadb2a4cc7b5ca741151b",
}
EXAMPLE_FACE = {"box": {"x": 120, "y": 64, "width": 210, "height": 260}, "score": 0.93, "probability_fake": 0.920659}
EXAMPLE_PREDICTION: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "verdict": "fake",
    "probability_fake": 0.920659,
    "thresholds": {"real_below": 0.0874, "fake_above": 0.5557},
    "faces": [EXAMPLE_FACE],
    "warnings": ["heavily_compressed"],
    "credentials": None,
    "model": EXAMPLE_MODEL,
    "timing_ms": 11.6,
}


def trouble_text(trouble: tuple[str, str] | None) -> str | None:
    """The problem with a version and what to do about it, as one text; None if all is well."""
    return ". ".join(trouble) if trouble else None


class Answer(BaseModel):
    """A response body, or a part of one."""

    model_config = ConfigDict(frozen=True)


class Box(Answer):
    """A rectangle in pixels of the upright image; `x` and `y` are its top left corner."""

    x: int
    y: int
    width: int
    height: int


class Face(Answer):
    """A face that was detected and judged."""

    box: Box
    score: float = Field(description="how sure the face detector is that this is a face, 0 to 1")
    probability_fake: float = Field(description="of this face alone", ge=0, le=1)


class Bounds(Answer):
    """`real` below `real_below`, `fake` at or above `fake_above`, else `uncertain`; also `uncertain` if a face was needed but not found."""

    real_below: float
    fake_above: float


class Model(Answer):
    """The model that answered, and what it was made from."""

    name: str
    version: str
    created: str = Field(description="UTC, ISO 8601")
    run_id: str | None = Field(description="MLflow run of its training")
    data_md5: str | None = Field(description="hash of the manifest of its data, as in dvc.lock")
    git_commit: str | None

    @classmethod
    def of(cls, served: Served) -> Self:
        """The model that is served."""
        meta = served.detector.package.meta
        lineage = {key: meta.lineage.get(key) for key in ("run_id", "data_md5", "git_commit")}
        return cls(name=MODEL, version=served.version, created=meta.created, **lineage)


class Prediction(Answer):
    """The verdict on an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_PREDICTION]})

    id: str = Field(description="of this answer; send it with feedback")
    verdict: Literal["real", "fake", "uncertain"]
    probability_fake: float = Field(ge=0, le=1, description="calibrated; of several faces the largest")
    thresholds: Bounds
    faces: list[Face] = Field(description="largest first; empty if none was found, or no face detector is in use")
    warnings: list[str] = Field(
        description="what makes it less reliable: no_face, many_faces, several_frames, too_small, too_blurry, too_dark, "
        "heavily_compressed, upscaled"
    )
    credentials: Credentials | None = Field(
        description="C2PA; does not affect the probability; null if the file has none or the reader is not installed"
    )
    model: Model
    timing_ms: float

    @classmethod
    def of(cls, id: str, found: Predicted, credentials: Credentials | None, served: Served, seconds: float) -> Self:
        """The answer to one image."""
        thresholds = served.detector.package.meta.thresholds
        return cls(
            id=id,
            verdict=found.verdict,
            probability_fake=round(found.probability_fake, DIGITS),
            thresholds=Bounds(real_below=round(thresholds.real_below, DIGITS), fake_above=round(thresholds.fake_above, DIGITS)),
            faces=[
                Face(
                    box=Box(x=face.x, y=face.y, width=face.width, height=face.height),
                    score=round(face.score, 3),
                    probability_fake=round(face.probability_fake, DIGITS),
                )
                for face in found.faces
            ],
            warnings=found.warnings,
            credentials=credentials,
            model=Model.of(served),
            timing_ms=round(seconds * 1000, 1),
        )


class Problem(Answer):
    """What is wrong with a request, and what to do."""

    code: str
    message: str
    hint: str


class Error(Answer):
    """The body of every response with a status of 400 or above."""

    error: Problem


class Item(Answer):
    """One image of a batch: it has a `result` or an `error`, never both."""

    index: int = Field(description="place in the request, from 0")
    name: str | None = Field(description="the file's name as it was sent, cut to 200 characters")
    result: Prediction | None = None
    error: Problem | None = None


class Batch(Answer):
    """The verdicts on several images, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {"index": 0, "name": "a.jpg", "result": EXAMPLE_PREDICTION, "error": None},
                        {
                            "index": 1,
                            "name": "b.txt",
                            "result": None,
                            "error": {
                                "code": "not_an_image",
                                "message": "The file is not an image that can be read",
                                "hint": "Use JPEG, PNG or WebP.",
                            },
                        },
                    ],
                    "timing_ms": 48.2,
                }
            ]
        },
    )

    results: list[Item]
    timing_ms: float


class Region(Answer):
    """The part of the image that the model saw, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


class Explanation(Answer):
    """A heat map of where the model looked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "attention_rollout",
                    "heat": [[0.1, 0.7], [0.0, 1.0]],
                    "region": {"left": 0.125, "top": 0.0, "width": 0.75, "height": 1.0},
                    "model": EXAMPLE_MODEL,
                }
            ]
        },
    )

    method: str = Field(description="attention_rollout, or grad_cam for a network without global attention")
    heat: list[list[float]] = Field(description="rows from top to bottom, 0 to 1, over `region`")
    region: Region
    model: Model


class Feedback(Answer):
    """The feedback that was recorded."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": EXAMPLE_ID, "label": "real", "image_kept": False}]})

    id: str
    label: Literal["real", "fake"]
    image_kept: bool


class Challenger(Answer):
    """The version that is tried out next to the champion."""

    version: str | None = Field(description="null if no version has the alias, or it is the one that answers")
    mode: Literal["shadow", "canary"] = Field(description="shadow: judges without answering; canary: answers")
    share: float = Field(description="share of the images that it judges now")
    ended: str | None = Field(description="why its canary was stopped")
    trouble: str | None = Field(description="why it cannot be tried out")

    @classmethod
    def of(cls, trial: Trial) -> Self | None:
        """What is tried out; None if UNMASK_CHALLENGER is off."""
        if trial.mode == "off":
            return None
        served, ended, trouble = trial.challenger.served, trial.stop_reason(), trial.challenger.trouble
        share = trial.share if served and not ended else 0.0
        version = served.version if served else None
        return cls(version=version, mode=trial.mode, share=share, ended=ended, trouble=trouble_text(trouble))


class About(Model):
    """The model that answers, its figures on the test part, and the limits of the service."""

    runtime: str
    trained_on: Literal["whole", "faces"] = Field(description="whole images, or face crops")
    face_detector: bool = Field(description="whether a face detector is in use")
    thresholds: dict[str, float]
    figures: dict[str, dict[str, float | None]] = Field(description="of the test part: value and 95% interval")
    lineage: dict[str, Any]
    limits: dict[str, Any] = Field(description="megabytes, megapixels, formats, batch")
    trouble: str | None = Field(description="why the intended version is not served")
    challenger: Challenger | None = Field(description="what is tried out beside it, if UNMASK_CHALLENGER is set")


class DriftReport(Answer):
    """The last check of whether traffic still looks like the model's validation data."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"checked": "2026-01-02T04:00:07+00:00", "version": "2", "drift": False, "p_value": 0.41, "alpha": 0.01, "window": 900}
            ]
        },
    )

    checked: str = Field(description="UTC, ISO 8601")
    version: str
    drift: bool
    p_value: float
    alpha: float
    window: int = Field(description="different pictures that were compared")


class Ready(Answer):
    """The service has a model."""

    ready: Literal[True]
    version: str
    trouble: str | None
