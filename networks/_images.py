"""Reading one image from disk, with one clear sentence for whatever is wrong with it."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def read_image(path: str | os.PathLike, mode: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode the image at `path` as `mode` ("L" or "RGB"), upright as its EXIF orientation says.

    With `size` (width, height) an image of any other size is refused, before it is decoded.
    ValueError for a file that is missing, not an image, truncated, too large to decode safely (Pillow's limit
    against decompression bombs), of more than 8 bits a channel, or with transparent pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on damaged metadata
            # Pillow only warns from its limit (about 90 million pixels) to twice that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if size is not None and image.size != size:
                    raise ValueError(f"it is {image.width}×{image.height} pixels, {size[0]}×{size[1]} are wanted")
                image.load()
                image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"cannot read image {path}: refused, it may be a decompression bomb: {error}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError, …
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(f"cannot read image {path}: {reason}") from error

    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ValueError(f"cannot read image {path}: it has transparent pixels; flatten it on a background first")
    elif image.mode not in EIGHT_BIT_MODES:
        # convert() would clip a 16-bit image to white without a word.
        raise ValueError(f"cannot read image {path}: mode {image.mode!r}, an image of 8 bits a channel is wanted")
    return image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """The pixels as float32 in [0, 1], (1, C, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).float() / 255
    return pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None].contiguous()


def per_channel(values: tuple[float, ...]) -> Tensor:
    """(1, C, 1, 1), to broadcast against a batch of images."""
    return torch.tensor(values).view(1, -1, 1, 1)


def find_data(path: Path, what: str, how: str) -> Path:
    """`path` if it exists, else FileNotFoundError saying what is missing and how to get it."""
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}; {how}")
    return path
