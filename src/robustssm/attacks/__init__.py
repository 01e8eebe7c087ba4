"""Attacks: searches of a threat set by someone who sees a function from inputs to logits."""
