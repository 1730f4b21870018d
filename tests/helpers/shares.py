"""What multipliers prove of several functions, by dense algebra."""

import torch

from local_lipschitz.margin.relaxation import best_scales


def shares(relaxation, mu, functions):
    """For functions c·ξ (K, N) and multipliers μ (1, …) of a batch of one: the best scale s of μ and its t, (K,).

    NaN where the matrix of μ is not positive definite.
    """
    M = relaxation.matrix(torch.cat([torch.zeros_like(mu[:, :1]), mu[:, 1:]], 1))[0]
    L, bad = torch.linalg.cholesky_ex(M[1:, 1:])
    if int(bad):
        return torch.ones_like(functions[:, 0]), torch.full_like(functions[:, 0], torch.nan)
    scale, y = best_scales(M, L, functions)
    b = 0.5 * functions[:, 1:].mT + scale * M[1:, :1]
    return scale, functions[:, 0] + scale * M[0, 0] + (y * b).sum(0)
