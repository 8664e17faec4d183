"""What the stage `evaluate` is made of: scores, calibration, figures with intervals, baselines, robustness, and its report."""
