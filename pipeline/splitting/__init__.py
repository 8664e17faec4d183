"""Building blocks of the stage `split`: the memory of earlier splits, and stratified assignment of whole groups."""
