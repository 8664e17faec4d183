"""What the stages of `dvc repro` do, and what serves their package. Whoever imports any of it has every tool's telemetry off."""

from pipeline import telemetry

telemetry.off()
