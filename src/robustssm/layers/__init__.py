"""Sequence layers: (batch, length, d_model) to the same shape, one paper each."""
