"""Evaluation: flags per example and attack, and signs that the attack failed rather than the model held."""
