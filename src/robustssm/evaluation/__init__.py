"""Evaluation: a flag per example and attack, and signs that the attack is what failed."""
