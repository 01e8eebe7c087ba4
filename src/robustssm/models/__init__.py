"""Models: tokens, blocks around layers, and the classifier made of them."""
