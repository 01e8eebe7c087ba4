"""How far float32 may be from float64, by operation, each with the measurement that set it.

All are relative to the largest entry of the float64 result. Measured as the worst over 20 seeds and
lengths 1, 7, 64, 196, 784 and 1024; the tolerance is two to four times that.
"""

CONVOLUTION = {"fft": 1e-6, "toeplitz": 5e-6, "compiled_fft": 1e-6, "compiled_direct": 5e-6}
"""Measured 2.7e-7 and 2.0e-6, white inputs and kernels: sums of as many terms as the length."""

VANDERMONDE = 1e-6
"""Measured 4.0e-7, eigenvalues and step sizes as S4D starts with them, 64 states."""

KRYLOV = 1e-5
"""Measured 4.3e-6, S4's kernel with 64 states, discretisation included; 2.9e-6 without."""

LOW_RANK = 5e-5
"""Measured 2.2e-5, the worst gradient (of e) at 64 states and length 1024; values 3.3e-6."""

CAUCHY = 4e-5
"""Measured 1.2e-5, the generating function of the same systems, after its inverse transform."""

DISCRETIZATION = 1e-6
"""Measured 3.2e-7, (exp(z) - 1) / z over 200,000 draws with 1e-6 < |z| < 1e2, Re z < 0."""

LAYER = 2e-5
"""A whole layer. Measured for S4 3.5e-6, S4D 3.0e-7, DSS 4.8e-7 at lengths 12 and 784."""

BLOCK = 2e-5
"""A whole residual block. Measured 8.4e-6, value or input gradient, over all its combinations."""

OTHER_FLOAT32 = 1e-4
"""Against float32 results of other people's S4 code, whose two modes differ by 7e-6 and whose
kernel has been seen 1.2e-4 away from float64."""
