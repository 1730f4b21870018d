"""The one error type of the package; everything else that a caller can mend is a ValueError."""


class UnsupportedLayerError(TypeError):
    """A layer that no bound here covers; the message names it, its position and its type."""
