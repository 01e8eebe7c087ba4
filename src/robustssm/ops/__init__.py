"""Pure functions on tensors; every fast form stands beside its reference."""
