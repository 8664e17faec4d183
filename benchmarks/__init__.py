"""Speed and size, measured: each figure beside a peer in the same run. Nothing here is a test; `results/` says what was seen where."""
