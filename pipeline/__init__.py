"""The stages of `dvc repro`, and what serves their package. Importing it turns off the telemetry of every tool."""

from pipeline import telemetry

telemetry.off()
