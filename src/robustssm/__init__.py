"""robustssm: adversarial robustness and poisoning of deep state space models."""

__version__ = "0.1.0"
