"""Theorem 4.1.1 as printed, on two built systems and on fresh layers, beside the exact error."""

import torch

from robustssm.core.rng import Noise
from robustssm.diagnostics.theorem import (
    counterexample_lower,
    counterexample_upper,
    paper_bounds,
    removable_singularity,
)
from robustssm.layers.dss import DSSConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.ops.second_moments import Moments, mean_square_bounds


def main(length: int = 64, channels: int = 16) -> int:
    """Prints both bounds and what is true, and returns how often the printed ones fail."""
    cases = [("built, upper", *counterexample_upper()), ("built, lower", *counterexample_lower())]
    unit = torch.ones(channels, dtype=torch.float64)
    constant = Moments.iid(length, mean=0.3 * unit, variance=0.09 * unit)
    for config in (S4Config(), S4DConfig(), DSSConfig()):
        layer = config.build(d_model=channels, length=length, noise=Noise(0)).double()
        u = torch.zeros(1, length, channels, dtype=torch.float64)
        with torch.no_grad():
            cases.append((config.name, layer.recurrence(u), constant))

    print("Least and largest over channels; D is left out, as the theorem does.")
    failures = 0
    for name, recurrence, moments in cases:
        found = paper_bounds(recurrence, moments, noise=Noise(1), samples=200)
        bounds = mean_square_bounds(recurrence, moments)
        broken = {side: int(where.sum()) for side, where in found.violations().items()}
        failures += sum(broken.values())
        print(f"\n{name}: printed bounds fail in {broken}, of {len(found.exact)}")
        for label, value in {
            "printed lower": found.lower,
            "exact, no D": found.exact_without_skip,
            "printed upper": found.upper,
            "true lower": bounds.lower,
            "exact": found.exact,
            "estimate": found.estimate,
            "true upper": bounds.minkowski,
        }.items():
            print(f"  {label:14} {value.min():12.4g} {value.max():12.4g}")

    print("\nThe input matrix of small steps goes to dt, not to infinity:")
    steps = removable_singularity(torch.tensor([1e-2, 1e-4, 1e-8], dtype=torch.float64))
    for dt, exact, _, naive in zip(*steps, strict=True):
        print(f"  dt {dt:.0e}: exact {exact:.6e}, naive quotient in float32 {naive:.6e}")
    return failures


if __name__ == "__main__":
    main()
