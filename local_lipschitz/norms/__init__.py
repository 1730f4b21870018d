"""Certified spectral norms of linear operators; knows no network.

spectral_norm.py: the largest singular value, estimated from below and certified from above.
lanczos.py: the process itself, and how its vectors stay orthogonal.
ritz.py: what its coefficients tell, and when to look.
cholesky.py: positive definite, with a proof.
"""
