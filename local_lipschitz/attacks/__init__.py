"""Attacks: points of another class, found; knows no bound.

search.py: what all attacks share: the record, and the nearest verified example so far.
gradient.py: FGSM, I-FGSM, gradient ascent, and whatever needs the network's gradient alone.
with_foolbox.py: Carlini & Wagner, and DDN.
"""

from .gradient import carlini_wagner, ddn, fgsm, gradient_ascent, iterated_fgsm
from .search import Attack, pixel_distance

__all__ = ["Attack", "carlini_wagner", "ddn", "fgsm", "gradient_ascent", "iterated_fgsm", "pixel_distance"]
