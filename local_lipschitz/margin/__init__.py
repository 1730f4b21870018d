"""The margin certificate: a lower bound of scalar functions on a whole ball, and branching until they are decided.

bends.py: the kinks of the network written out, and rows of it by backward passes, with their rounding.
kinks.py: those rows, and bounds by lines. intervals.py: between which ends every element lies. ends.py: better ones.
box.py: a box that cuts the ball. ball.py: kinks and functions in scaled variables.
relaxation.py: what is true of every point of the ball. reduced.py: what is left where windows are eliminated.
fields.py: what a row sees of it. small_fields.py: ends where that is very little.
start.py, layered.py, interior_point.py, barrier.py and newton.py, solve.py: multipliers. certificate.py: the proof.
branching.py: branch and bound.
bound.py: margin_bound.
"""

from .bound import MarginBound, margin_bound

__all__ = ["MarginBound", "margin_bound"]
