"""What the stage `export` is made of: graphs, fewer bits, and the model card."""
