"""The certified radius: how far no input can be of another class, by any of the bounds.

radius.py: the rules and the answer. certificate.py: whether a bound proves the class at some ε.
search.py: the largest ε at which it does.
"""

from .radius import Radius, certified_radius

__all__ = ["Radius", "certified_radius"]
