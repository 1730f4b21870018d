"""The one error type of the package; everything else that a caller can mend is a ValueError."""

LONGEST = 400  # characters of somebody else's error that are shown


class UnsupportedLayerError(TypeError):
    """A layer that no bound here covers; the message names it, its position and its type."""


def one_line(error: Exception) -> str:
    """What an error says, on one line that is not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
