"""The network near x0 as one linear operator with kinks; shared by the joint bound and by certificates of margins.

kinks.py: one layer of kinks: what it reads, its slopes, and how it acts on differences.
pooling.py: max pooling as a tournament of pairs, each pair a kink.
blocks.py: a stage with its tournament and its activation.
operator.py: the blocks as one operator, by forward and backward passes.
build.py: from a graph and x0 to that operator, block by block, with gains and slopes.
row_errors.py: what rounding may have changed in a row of the operator.
"""

from .blocks import Block, Plan, plans
from .build import Groups, Known
from .kinks import Kinks, Reads
from .operator import Elements, JointOperator, Passes, at_once, unit_rows
from .row_errors import RowErrors

__all__ = [
    "Block", "Elements", "Groups", "JointOperator", "Kinks", "Known", "Passes", "Plan", "Reads", "RowErrors",
    "at_once", "plans", "unit_rows",
]  # fmt: skip
