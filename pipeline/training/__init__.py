"""Building blocks of the stage `train`: data set, augmentation, which weights are trained, and the Trainer."""
