"""Training: objectives as generators of losses, and the one loop that runs them."""
