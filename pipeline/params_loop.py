"""The sections of params.yaml for the model's upkeep: promotion, drift, retraining, feedback, notifications."""

from datetime import datetime
from typing import Literal

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from pipeline.params_data import Section, Share

FIELDS = "a schedule has five fields, like a line of a crontab: minute, hour, day, month, weekday"


class Promotion(Section):
    """Whether a version replaces the champion automatically."""

    auto: Literal["never", "if_better", "if_not_worse"] = Field(
        description="promote if the lower bound of the difference from the champion on the test part is, for both F1 and AUC, above "
        "0 for `if_better`, above -margin for `if_not_worse`; `never` leaves it to a person"
    )
    margin: float = Field(ge=0, le=1, description="how much worse still counts as not worse")


class Drift(Section):
    """When the traffic counts as different from the reference."""

    min_window: int = Field(ge=50, description="predictions below which a check ends as 'not enough data'")
    max_window: int = Field(gt=0, description="newest predictions that a check looks at")
    alpha: Share = Field(description="false-alarm rate of one check, held by permutation at the window's own size")
    permutations: int = Field(ge=99, description="of window and reference, for the p-value of a check")
    cron: str = Field(description="when the flow `drift` runs, in the five fields of a crontab, UTC")

    @field_validator("cron")
    @classmethod
    def _is_a_crontab(cls, value: str) -> str:
        try:
            CronSim(value, datetime.now())
        except CronSimError as error:
            raise ValueError(f"{error}: {FIELDS}") from None
        if len(value.split()) != 5:  # six, with seconds
            raise ValueError(FIELDS)
        return value

    @model_validator(mode="after")
    def _can_find_drift(self) -> "Drift":
        if self.max_window < self.min_window:
            raise ValueError(f"max_window {self.max_window} is below min_window {self.min_window}: no check would ever have enough data")
        least = 1 / (self.permutations + 1)
        if self.alpha < least:
            raise ValueError(
                f"alpha {self.alpha:g} is below {least:.2g}, the smallest p-value of {self.permutations} permutations: "
                "drift could never be found; raise `permutations` or `alpha`"
            )
        return self


class Retrain(Section):
    """When drift may start a training. Nothing here limits `prefect deployment run train/default` by a person."""

    on: Literal["new_data", "always"] = Field(description="`new_data`: only if there are images that the newest version has not seen")
    cooldown_hours: float = Field(ge=0, le=87_600, description="since the last training that drift started")
    a_day: int = Field(ge=0, description="trainings that drift may start within 24 hours")
    label_next: int = Field(ge=0, description="images exported for labelling if there is no new data")


class Feedback(Section):
    """How long users' images are kept. The data source `feedback` sets which of their labels count."""

    retention_days: float | None = Field(
        gt=0, le=36_500, description="days until an image that a user allowed us to keep is deleted; null keeps it"
    )


class Notifications(Section):
    """Who is notified of a failed gate, drift, promotion, refusal, roll-back or stopped canary."""

    block: str | None = Field(description="Prefect block that sends messages, as `type/name`, e.g. custom-webhook/team; null sends none")
