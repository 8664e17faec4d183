"""What the stage `split` is made of: what has to stay together, and shares that are alike in every part."""
