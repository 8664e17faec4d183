"""Where a network looked: attention rollout, Grad-CAM, and the picture of it."""
