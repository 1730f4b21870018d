"""The bound of the paper: a product of layer norms.

bound.py: global and local bound, the whole network.
propagation.py: gains, slopes and live elements from stage to stage.
stage_norms.py: the norm of one stage.
falls.py: how far one output can fall, by pulling it back.
description.py: what the package makes of a network, as a table.
"""

from .bound import Bound, global_bound, local_bound
from .description import describe

__all__ = ["Bound", "describe", "global_bound", "local_bound"]
