"""Building blocks of the stage `ingest`: copying images from sources, decoding, describing and remembering them."""
