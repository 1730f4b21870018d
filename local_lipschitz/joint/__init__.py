"""The joint bound: the whole network as one operator.

bound.py: the bound, for a batch; which of the two ways below is taken.
dense.py: few kinks: the rows of all of them at hand, dense algebra in float64.
rows.py: functions on top of these: their bounds, proofs and better multipliers.
passes.py: many kinks: forward and backward passes alone.
krylov.py: what multipliers are worth, by passes.
descent.py: the multipliers, downhill.
certificate.py: a certified norm at the end.
"""

from .bound import JointBound, joint_bound

__all__ = ["JointBound", "joint_bound"]
