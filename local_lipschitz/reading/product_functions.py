"""Products of a layer with constant matrices, as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.linear_maps import Dense
from ..layers.products import Contraction
from .arguments import same_for_all
from .arithmetic_functions import Operand, add, times
from .rearranging_functions import expanded
from .symbol import Traced, is_traced

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIXES = "it multiplies across dimension 0, the batch, whose inputs must not be mixed"
TWO_LAYERS = "a product of two layers is not piecewise linear; constant factors are supported"


def matmul(x: Operand, other: Operand) -> Traced:
    """x @ W or A @ x for a constant vector or matrix, or one matrix for each element of leading dimensions."""
    if is_traced(x) and is_traced(other):
        raise UnsupportedLayerError(TWO_LAYERS)
    left = is_traced(x)
    x, c = (x, other) if left else (other, x)
    if not left and len(x.unbatched) == 1:
        raise UnsupportedLayerError(f"A @ x: {MIXES}; x.unsqueeze(-1) makes it a column")
    if c.dim() > x.dim() or not x.unbatched:
        raise UnsupportedLayerError(f"a constant of shape {tuple(c.shape)} changes the batch of {x}")
    c = same_for_all(c.detach()) if c.dim() == x.dim() > 2 else c.detach()
    matrix = min(2, len(x.unbatched))  # dimensions of one matrix of x, of one row where the other is the batch
    shared = c.shape[:-2]
    x = expanded(x, (*torch.broadcast_shapes(shared, x.unbatched[:-matrix]), *x.unbatched[-matrix:]))
    reads = LETTERS[: len(x.unbatched)]
    lead = reads[: len(x.unbatched) - matrix]
    lead = "".join(a for a, n in zip(lead[len(lead) - len(shared) :], shared, strict=True) if n != 1)
    c = c.reshape(*(n for n in shared if n != 1), *c.shape[-2:])
    new = "Z" if c.dim() - len(lead) == 2 else ""
    if left:
        return contracted(x, c, reads, lead + reads[-1] + new, reads[:-1] + new)
    return contracted(x, c, reads, lead + new + reads[-2], reads[:-2] + new + reads[-1])


def addmm(bias: Operand, x: Operand, other: Operand, *, beta: float = 1.0, alpha: float = 1.0) -> Traced:
    """addmm, baddbmm: beta·bias + alpha·(x @ other)."""
    product = times(matmul(x, other), alpha)
    return add(product, times(bias, beta)) if beta != 0 else product


def tensordot(x: Operand, other: Operand, dims: Any = 2, out: None = None) -> Traced:
    if not is_traced(x) or is_traced(other):
        raise UnsupportedLayerError("tensordot other than of a layer with a constant, in this order")
    if isinstance(dims, int):
        dims = list(range(x.dim() - dims, x.dim())), list(range(dims))
    summed = [d % x.dim() for d in dims[0]], [d % other.dim() for d in dims[1]]
    words = list(LETTERS[: x.dim()]), list(LETTERS[x.dim() : x.dim() + other.dim()])
    for i, j in zip(*summed, strict=True):
        words[1][j] = words[0][i]
    kept = [a for word, at in zip(words, summed, strict=True) for i, a in enumerate(word) if i not in at]
    return einsum(f"{''.join(words[0])},{''.join(words[1])}->{''.join(kept)}", x, other)


def bilinear(x: Operand, other: Operand, weight: Tensor, bias: Tensor | None = None) -> Traced:
    """y_k = Σ_ij x_i W_kij c_j, one of the two constant."""
    y = einsum("...i,kij,...j->...k", x, weight, other)
    return y if bias is None else add(y, bias)


def einsum(equation: str, *operands: Any) -> Traced:
    """Sums of products of one layer with constants."""
    if len(operands) == 1 and isinstance(operands[0], Sequence):
        operands = tuple(operands[0])
    if sum(is_traced(c) for c in operands) != 1:
        raise UnsupportedLayerError(TWO_LAYERS)
    words, out = _words(equation, [c.dim() for c in operands])
    at = next(i for i, c in enumerate(operands) if is_traced(c))
    x, word = operands[at], words[at]
    if out[:1] != word[:1] or word[0] in word[1:] + out[1:]:
        raise UnsupportedLayerError(f"einsum {equation!r}: {MIXES}")
    if len(set(word)) != len(word):
        raise UnsupportedLayerError(f"einsum {equation!r} takes a diagonal of a layer")
    constants = [
        _without(word[0], w, c.detach()) for i, (w, c) in enumerate(zip(words, operands, strict=True)) if i != at
    ]
    reads, gives = word[1:], out[1:]
    sizes = dict(zip(reads, x.unbatched, strict=True))
    for w, c in constants:
        for letter, n in zip(w, c.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise UnsupportedLayerError(f"einsum {equation!r}: sizes {sizes[letter]} and {n} of {letter!r}")
    known = set(gives).union(*(w for w, _ in constants))
    constants += [(a, torch.ones(sizes[a], device=x.device)) for a in reads if a not in known]  # summed by itself
    of = "".join(sorted(set("".join(w for w, _ in constants)) & set(reads + gives)))
    terms = [c.double() for _, c in constants] or [torch.ones((), dtype=torch.float64, device=x.device)]
    weight = torch.einsum(f"{','.join(w for w, _ in constants)}->{of}", *terms)
    return contracted(x, weight, reads, of, gives)


def _words(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, ellipses and what is implicit written out."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    words = inputs.split(",")
    free = [a for a in reversed(LETTERS) if a not in equation]
    dots = [n - len(word.replace("...", "")) if "..." in word else 0 for word, n in zip(words, ranks, strict=True)]
    if not arrow:
        once = sorted(a for a in set(inputs) - set(".,") if inputs.count(a) == 1)
        out = ("..." if "..." in inputs else "") + "".join(once)

    def written(word: str, n: int) -> str:
        return word.replace("...", "".join(reversed(free[:n])))

    return [written(word, n) for word, n in zip(words, dots, strict=True)], written(out, max(dots))


def _without(batch: str, word: str, c: Tensor) -> tuple[str, Tensor]:
    """A constant without its batch dimension, if it has one."""
    if batch not in word:
        return word, c
    i = word.index(batch)
    return word[:i] + word[i + 1 :], same_for_all(c.movedim(i, 0))


def contracted(x: Traced, weight: Tensor, reads: str, of: str, gives: str) -> Traced:
    """The contraction of x with a constant, as nn.Linear does it where it is that."""
    sizes = dict(zip(reads, x.unbatched, strict=True))
    wrong = [a for a, n in zip(of, weight.shape, strict=True) if sizes.setdefault(a, n) != n]
    if wrong:
        raise ValueError(f"a constant of shape {tuple(weight.shape)} does not fit {x.unbatched}")
    out_shape = tuple(sizes[a] for a in gives)
    if reads and gives and reads[:-1] == gives[:-1] and {*of} == {reads[-1], gives[-1]} and reads[-1] != gives[-1]:
        return x.then(Dense(x.unbatched, out_shape, weight if of == gives[-1] + reads[-1] else weight.mT))
    return x.then(Contraction(x.unbatched, out_shape, weight, reads, of, gives))


def mv(x: Operand, other: Operand) -> Traced:
    if not is_traced(x):
        raise UnsupportedLayerError(f"A.mv(x): {MIXES}")
    return matmul(x, other)
