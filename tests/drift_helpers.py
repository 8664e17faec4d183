"""Simulated answers of a service, and a prediction log of them."""

import uuid
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.detector import Prediction
from pipeline.monitoring.predictions import STATISTICS, PredictionLog
from pipeline.params_loop import Drift

DIMENSIONS = 16
SETTINGS = Drift(min_window=50, max_window=1000, alpha=0.01, permutations=199, cron="0 * * * *")


def sample(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Simulated output of `measures` for images of one source: some columns are continuous, some have ties, one is constant."""
    return pd.DataFrame(
        {
            "probability_fake": rng.beta(0.5, 0.5, rows),
            "embedding": list(rng.normal(size=(rows, DIMENSIONS)).astype(np.float32)),
            "brightness": rng.normal(120, 30, rows),
            "contrast": rng.normal(50, 10, rows).round(),
            "blur": rng.lognormal(5, 1, rows),
            "saturation": rng.normal(90, 20, rows),
            "width": rng.choice([96.0, 128.0], rows),
            "height": np.full(rows, 96.0),
        }
    )


def record(path: Path, package: str, rows: pd.DataFrame) -> PredictionLog:
    """Log rows as the service does. Those without an id get one."""
    log = PredictionLog(path)
    for row in rows.to_dict("records"):
        statistics = {name: row[name] for name in STATISTICS}
        prediction = Prediction(row["probability_fake"], "uncertain", ["too_dark"], row["embedding"], statistics)
        log.record(id=row.get("id") or str(uuid.uuid4()), package=package, version="1", prediction=prediction)
    log.close()
    return log
