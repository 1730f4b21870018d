"""Draw the nominal MNIST input, an 8 in MNIST's manner: white on black, in a 20×20 box, centred by mass.

    python networks/mnist_draw.py

writes data/mnist/8.png. The digit is the project's own; no MNIST image is used.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SCALE = 32  # drawn this much larger, then averaged: antialiasing
SIZE = 28


def eight(pen: float = 1.2, slant: float = 0.15, height: float = 8.6) -> Image.Image:
    """A handwritten 8: one stroke of radius `pen` that crosses itself, narrower at the top, leaning right."""
    image = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    draw = ImageDraw.Draw(image)
    steps = 2000
    for step in range(steps):
        t = 2 * math.pi * step / steps
        y = -math.cos(t)  # -1 at the top, 1 at the bottom
        x = (5.9 + 0.8 * y) * math.sin(t) * math.tanh(2.5 * y)
        left = SIZE / 2 + x - slant * height * y - pen
        top = SIZE / 2 + height * y - pen
        draw.ellipse([left * SCALE, top * SCALE, (left + 2 * pen) * SCALE, (top + 2 * pen) * SCALE], fill=255)
    return image


def centred(image: Image.Image) -> Image.Image:
    """The image shifted so that its centre of mass is its middle, reduced to 28×28."""
    ink = np.asarray(image, dtype=float)
    middle = (SIZE * SCALE - 1) / 2
    down, right = (round(middle - (place * ink).sum() / ink.sum()) for place in np.indices(ink.shape))
    return ImageChops.offset(image, right, down).resize((SIZE, SIZE), Image.Resampling.BOX)


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "data" / "mnist" / "8.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    centred(eight()).save(path)
    print(f"wrote {path}")
