"""The joint bound: the whole network as one operator.

bound.py: the bound, for a batch; which of the two ways below is taken.
dense.py: the rows of all kinks at hand, dense algebra: for as many as memory and time allow.
groups.py: the matrices of these kinks.  device.py: how many there may be.
functions.py: functions on top of them: their bounds, proofs and better multipliers.
problems.py: what is asked of multipliers, side by side.  interior.py: how they are found.  together.py: for several
inputs in step.  sizes.py: what is made small.  first_kinks.py: with the first kinks eliminated.
kink_layers.py: what is known of the kinks in the end.
passes.py: more kinks: forward and backward passes alone.
krylov.py: what multipliers are worth, by passes.
descent.py: the multipliers, downhill.  lbfgs.py: its inverse Hessians.
certificate.py: a certified norm at the end.
"""

from .bound import JointBound, joint_bound

__all__ = ["JointBound", "joint_bound"]
