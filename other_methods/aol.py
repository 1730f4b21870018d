"""The AOL bound: row sums of |WᵀW| in place of singular values, passed from the last layer to the first.

Paper: Prach & Lampert, ECCV 2022, arXiv 2208.03160 (Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
Networks): ‖W x‖² ≤ Σ_j d_j x_j² with d_j = Σ_k |WᵀW|_jk, so that W diag(d)^{-½} is 1-Lipschitz. They rescale layers in
training; here the same inequality bounds a given network. Quantity: global. Norm: l2 to l2. Rigorous: yes.
Form "product" multiplies the layers' √(max d). Form "passed" (ours, never larger) keeps the d_j: with weights d on the
outputs of a layer, ‖diag(d)^½ W x‖² ≤ Σ_j d'_j x_j² with d'_j = Σ_k |Wᵀ diag(d) W|_jk; a relu leaves differences no
larger, element by element; and a pooled value moves at most as its window does, so an element has the sum of the
weights of the windows that it falls in. At the input the bound is √(max d).
Proof of the inequality: 2|x_j x_k| ≤ x_j² + x_k² in xᵀWᵀWx, and |WᵀW| is symmetric.
Cost: one column of WᵀW for each input of a layer, by passes; of a convolution, one for each channel and each place in a
square so large that what two columns of the same place in two squares reach does not meet.

    python other_methods/aol.py --network cifar10
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_lipschitz.layers.linear_maps import Convolution, size
from local_lipschitz.layers.max_pooling import MaxPool
from other_methods.common import script
from other_methods.common.network import Link, Network
from other_methods.common.preactivation import gamma

FORMS = ("passed", "product")
CHUNK = 2**24  # elements of a batch of columns


def aol(net: Network, form: str = "passed") -> float:
    """The AOL bound of the global Lipschitz constant, l2 to l2."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is wanted")
    if form == "product":
        links = itertools.chain.from_iterable(net.segments)
        return net.pooling * math.prod(_root(input_weights(link, torch.ones(1, *link.out_shape))) for link in links)
    d = torch.ones(1, *net.links[-1].out_shape, dtype=torch.float64)
    for link in reversed(net.links):
        if isinstance(link.unit, MaxPool):
            d = before_pooling(link.unit, d)
        d = input_weights(link, d)
    return _root(d)


def input_weights(link: Link, d: Tensor) -> Tensor:
    """d'_j = Σ_k |Wᵀ diag(d) W|_jk, and what rounding may take from it: (1, *in_shape) from d (1, *out_shape)."""
    if link.is_identity:
        return d
    d = d.double()
    total = torch.zeros(1, *link.in_shape, dtype=torch.float64)
    for columns in _probes(link):
        total += link.adjoint(d * link.apply(columns)).abs().sum(0)
    # column j of |W|ᵀ diag(d) |W| is what the rounding of column j of Wᵀ diag(d) W is relative to
    absolute = link.absolute
    sums = absolute.adjoint(d * absolute.apply(torch.ones(1, *link.in_shape, dtype=torch.float64)))
    layers = max(1, len(link.stage.layers))
    return total + 2.0 * layers * gamma(link.stage.terms) * sums.clamp(min=0.0)


def before_pooling(pool: MaxPool, d: Tensor) -> Tensor:
    """The weights Σ_w d_w of the windows w that each element falls in."""
    index = pool.windows
    before = d.new_zeros(1, pool.in_shape[0], math.prod(pool.in_shape[1:]) + 1)
    before.index_add_(2, index.flatten() % before.shape[2], d.flatten(2).repeat_interleave(index.shape[1], 2))
    return before[..., :-1].reshape(1, *pool.in_shape)  # the last place took what windows read of the padding


def _probes(link: Link) -> Iterator[Tensor]:
    """Batches of 0/1 inputs that together hold each unit vector once, those of one input too far apart to meet."""
    ops = [layer.op for layer in link.stage.layers]
    batch = max(1, CHUNK // max(size(link.in_shape), size(link.out_shape)))
    if len(ops) == 1 and isinstance(ops[0], Convolution) and len(link.in_shape) == 3:
        kernel = ops[0].weight.shape[2:]
        if ops[0].transposed:  # two inputs meet where their windows in the output do
            reach = [d * (k - 1) // s + 1 for d, k, s in zip(ops[0].dilation, kernel, ops[0].stride, strict=True)]
        else:
            reach = [d * (k - 1) for d, k in zip(ops[0].dilation, kernel, strict=True)]
        C, H, W = link.in_shape
        period = [min(2 * r + 1, n) for r, n in zip(reach, (H, W), strict=True)]
        places = list(itertools.product(range(C), range(period[0]), range(period[1])))
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            columns = torch.zeros(len(part), C, H, W, dtype=torch.float64)
            for column, (c, i, j) in zip(columns, part, strict=True):
                column[c, i :: period[0], j :: period[1]] = 1.0
            yield columns
        return
    n = size(link.in_shape)
    for start in range(0, n, batch):
        count = min(batch, n - start)
        yield torch.eye(count, n, dtype=torch.float64).roll(start, 1).reshape(count, *link.in_shape)


def _root(d: Tensor) -> float:
    return math.sqrt(max(0.0, float(d.max()))) * (1.0 + 1e-15)


def main() -> None:
    options = script.parser(__doc__, eps=False)
    options.add_argument("--form", choices=FORMS, default="passed", help="default: passed")
    args = options.parse_args()
    problem = script.problem(args)
    method = script.Method(f"AOL, {args.form}", "global", "2 to 2", True, partial(aol, problem.network, args.form))
    script.single(method, args.time_limit, f"{problem.name}, all inputs")


if __name__ == "__main__":
    script.run(main)
