"""What the stage `ingest` is made of: images brought in from sources, decoded, described and remembered."""
