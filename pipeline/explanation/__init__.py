"""Where a network looked: attention rollout, Grad-CAM, and the heat map drawn from them."""
