"""S4's discrete system as one real matrix and one real vector."""

from robustssm.ops.discretize import bilinear_low_rank, low_rank_matrix, real_pairs


def real_low_rank(a, p, b, dt):
    e, q, r, first = bilinear_low_rank(a, p, b, dt)
    return low_rank_matrix(e, q, r), real_pairs(first)
