"""Damaged and malicious files."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np


class Bomb:
    """What unpickling it would do: write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def spoil(path: Path, kind: str, fired: Path) -> None:
    """Put a damaged or foreign file in the place of `path`."""
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("ε,bound\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(fired)))
    elif kind == "object array":
        np.savez(path, settings=np.array([Bomb(fired)], dtype=object))
    elif kind == "pickle in a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("settings.npy", pickle.dumps(Bomb(fired)))
    elif kind == "another npz":
        np.savez(path, x=np.zeros(2))
    elif kind == "a made-up size":  # a few bytes that say they are terabytes
        with zipfile.ZipFile(path, "w") as archive:
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }\n"
            archive.writestr("eps.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    else:
        path.unlink()
        path.mkdir()
