"""Parts of the stage `export`: inference graphs, reduced precision, and the model card."""
