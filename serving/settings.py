"""The service's settings, from environment variables that are read once, when it starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from pipeline.errors import StageError
from pipeline.images import FORMATS, Limits
from pipeline.monitoring import predictions

PREFIX = "UNMASK_"

FORM_BYTES = 64_000
"""Bytes that a multipart form may have besides its files: boundaries, headers, small fields."""


def _listed(value: object) -> object:
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


class Settings(BaseModel):
    """The field `max_batch` is the variable UNMASK_MAX_BATCH, and so on. Limits apply to each worker process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_listed)] = Field(
        (), description="comma-separated; without keys the service answers only this machine"
    )
    max_megabytes: float = Field(20, gt=0, description="of one image file")
    max_megapixels: float = Field(50, gt=0, description="of one image, checked before it is decoded")
    formats: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        FORMATS, min_length=1, description=f"Pillow's names of the formats that are read, of {', '.join(FORMATS)}"
    )
    max_batch: int = Field(64, gt=0, le=1024, description="images of one /predict/batch")
    max_batch_megabytes: float = Field(100, gt=0, description="of a whole /predict/batch, which lies in memory")
    rate: int | None = Field(
        None,
        ge=0,
        description="POST requests per minute and client, 0 for unlimited; by default 1200 with keys, unlimited without",
    )
    queue: int = Field(128, gt=0, description="concurrent uploads, of max_megabytes each; beyond that the answer is 429")
    timeout: float = Field(30, gt=0, le=120, description="seconds that the answer to an upload may take")
    upload_timeout: float = Field(60, gt=0, le=120, description="seconds that an upload may take")
    log_rows: int = Field(predictions.MOST, gt=0, description="answers that the prediction log keeps; the oldest go first")
    feedback_megabytes: float = Field(1000, ge=0, description="for feedback and its images together; beyond that no more is accepted")
    challenger: Literal["off", "shadow", "canary"] = Field(
        "off", description="what the version with the alias `challenger` does: off, shadow (judges only), canary (answers a share)"
    )
    challenger_share: float = Field(0.1, gt=0, le=1, description="share of the images that the challenger judges")
    canary_shift: float = Field(
        0.1, ge=0, le=1, description="difference between the two models' shares of a verdict above which a canary is stopped"
    )
    canary_alpha: float = Field(0.01, gt=0, lt=1, description="chance of stopping a canary whose shares differ by no more than that")
    canary_least: int = Field(100, ge=20, description="images judged by each of champion and challenger before their verdicts are compared")
    var: Path = Field(Path("var"), description="folder of the prediction log, feedback and downloads")

    @field_validator("formats")
    @classmethod
    def _are_known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(name.upper() for name in formats)
        if unknown := [name for name in found if name not in FORMATS]:
            raise ValueError(f"{', '.join(unknown)} cannot be read in this installation")
        return found

    @field_validator("challenger_share")
    @classmethod
    def _leaves_something_to_compare_with(cls, share: float, others: ValidationInfo) -> float:
        if others.data.get("challenger") == "canary" and share > 0.9:
            raise ValueError("a canary answers at most 0.9 of the pictures: it is compared with the champion on the rest")
        return share

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables; an empty one counts as unset.

        Raises:
            StageError: naming the variable and what it should be.
        """
        names = {field: PREFIX + field.upper() for field in cls.model_fields}
        try:
            return cls.model_validate({field: environment[name] for field, name in names.items() if environment.get(name)})
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            what = cls.model_fields[field].description
            raise StageError(f"{names[field]}: {error.errors()[0]['msg']}; meaning: {what}") from None

    @property
    def images(self) -> Limits:
        """The limits on an image."""
        return Limits(max_bytes=int(self.max_megabytes * 1e6), max_pixels=int(self.max_megapixels * 1e6), formats=self.formats)

    @property
    def under_way_bytes(self) -> int:
        """Bytes that concurrent uploads may hold in memory together: `queue` images of the largest size, or one batch if that is more."""
        return int(max(self.queue * self.max_megabytes, self.max_batch_megabytes) * 1e6) + FORM_BYTES * self.queue

    @property
    def share(self) -> float:
        """What one client may hold of the uploads under way and of the feedback: with several keys half, so that none shuts out others."""
        return 0.5 if len(self.api_keys) > 1 else 1.0

    @property
    def largest_upload(self) -> int:
        """Bytes of the largest upload that is accepted."""
        return int(max(self.max_megabytes, self.max_batch_megabytes) * 1e6) + FORM_BYTES

    @property
    def requests_per_minute(self) -> int:
        """Per client; 0 for unlimited, the default without keys: the only client is then this machine."""
        return self.rate if self.rate is not None else 1200 if self.api_keys else 0
