"""Building blocks of the stage `evaluate`: scores, calibration, metrics with intervals, baselines, robustness, and the report."""
