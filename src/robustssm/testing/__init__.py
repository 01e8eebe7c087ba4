"""Public contract checks: what every layer, attack, objective and data set must satisfy."""
