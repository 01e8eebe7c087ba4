"""Why a model is robust or not: probes of trained models, each with the theory that it checks."""
