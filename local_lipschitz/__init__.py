"""Certified local Lipschitz bounds of ReLU networks.

Reproduces and extends P. Avant and K. A. Morgansen, Analytical Bounds on the Local Lipschitz Constants of ReLU
Networks, IEEE TNNLS 2023, doi 10.1109/TNNLS.2023.3273228.
"""

from .errors import UnsupportedLayerError
from .joint.bound import JointBound, joint_bound
from .margin.bound import MarginBound, margin_bound
from .product.bound import Bound, global_bound, local_bound
from .product.description import describe
from .radius import Radius, certified_radius
from .reading.onnx_file import read_onnx
from .verify import Verdict, verify

__all__ = [
    "Bound",
    "JointBound",
    "MarginBound",
    "Radius",
    "UnsupportedLayerError",
    "Verdict",
    "certified_radius",
    "describe",
    "global_bound",
    "joint_bound",
    "local_bound",
    "margin_bound",
    "read_onnx",
    "verify",
]
