"""What the stage `train` is made of: data set, augmentation, which weights move, and the Trainer."""
