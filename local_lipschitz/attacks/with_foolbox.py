"""The attacks that foolbox has: Carlini & Wagner, and DDN. Both keep to valid images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..precision import no_tf32
from .search import Attack, Search

STEP, LARGE_STEP = 0.03, 0.1  # of Adam
GAIN = 1e-3  # of the distance: a class that brings less ends the search


@no_tf32()
def carlini_wagner(
    net: nn.Module, x0: Tensor, box: tuple[Tensor, Tensor], label: Tensor | None = None, *,
    targets: int = 4, steps: int = 600, seed: int = 0,
) -> Attack:  # fmt: skip
    """The ℓ2 attack of Carlini & Wagner (2017), as foolbox has it, in pixel units and clipped to valid images.

    Run at the `targets` nearest classes (in the linearised network), nearest first, and only as long as the last one
    brought an input nearer; with the larger step size where the smaller one finds nothing. Its early stop is off, which
    at default settings ends many searches too soon. `steps` of Adam for each of nine constants.
    box: (black, white) input, which broadcast against x0; other arguments and errors as for `gradient_ascent`, and
    ValueError for an x0 outside the box. It minimises the distance in pixels, which is proportional to that in
    normalised units where the channels have one std.
    """
    import foolbox

    search = Search(net, x0, label)

    def run(i: Tensor, target: Tensor, stepsize: float) -> None:
        goal = foolbox.criteria.TargetedMisclassification(target[i])
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=9, steps=steps, stepsize=stepsize, initial_const=0.1, abort_early=False
        )
        _run_foolbox(search, attack, i, goal, box, seed)

    gaining = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
    for target in _nearest_classes(search, targets).T:
        before = search.distance.clone()
        run(gaining.nonzero()[:, 0], target, STEP)
        if bool((nothing := search.distance.isinf()).any()):
            run(nothing.nonzero()[:, 0], target, LARGE_STEP)
        gaining = gaining & (search.distance < (1.0 - GAIN) * before) | search.distance.isinf()
        if not bool(gaining.any()):
            break
    return search.result(valid_images=True)


@no_tf32()
def ddn(
    net: nn.Module, x0: Tensor, box: tuple[Tensor, Tensor], label: Tensor | None = None, *,
    steps: int = 1000, seed: int = 0,
) -> Attack:  # fmt: skip
    """The decoupled direction and norm attack of Rony et al. (2019), as foolbox has it; arguments as for C&W."""
    import foolbox

    search = Search(net, x0, label)
    everything = torch.arange(len(x0), device=x0.device)
    goal = foolbox.criteria.Misclassification(search.label)
    _run_foolbox(search, foolbox.attacks.DDNAttack(steps=steps), everything, goal, box, seed)
    return search.result(valid_images=True)


def _run_foolbox(search: Search, attack: Any, i: Tensor, goal: Any, box: tuple[Tensor, Tensor], seed: int) -> None:
    """Run one attack of foolbox on the inputs i; foolbox sees pixels in [0, 1]."""
    import foolbox

    black, white = (end.to(search.x0) for end in box)
    pixels = (search.x0[i] - black) / (white - black)
    if bool(((pixels < -1e-5) | (pixels > 1.0 + 1e-5)).any()):
        raise ValueError("x0 is not a valid image: it has pixels outside the box that this attack keeps to")
    inside = pixels.clamp(0.0, 1.0).to(search.dtype)
    model = foolbox.PyTorchModel(_InPixels(search.net, black, white), bounds=(0, 1), device=search.x0.device)
    with _seeded(seed):
        found, _, _ = attack(model, inside, goal, epsilons=None)
    found = found.double()
    # found in the network's dtype, at the very border of the class: a hair beyond it is tried, too
    for further in (1.0, 1.0 + 1e-5, 1.0 + 1e-3):
        search.offer(i, black + (white - black) * (pixels + further * (found - pixels)).clamp(0.0, 1.0))


def _nearest_classes(search: Search, count: int) -> Tensor:
    """(B, K): the `count` classes with the least g/‖∇g‖ at x0, g = f_t − f_c, of the 20 with the least g."""
    likely = search.others.gather(1, search.margins.argsort(1)[:, :20])
    ways = []
    for c in likely.T:
        gap, gradient = search.gradient(
            lambda y: (y.gather(1, search.label[:, None]) - y.gather(1, c[:, None]))[:, 0], search.x0
        )
        ways.append(gap.double() / gradient.flatten(1).norm(dim=1).clamp(min=1e-30))
    return likely.gather(1, torch.stack(ways, 1).argsort(1)[:, :count])


class _InPixels(nn.Module):
    """The network as a function of pixels in [0, 1]."""

    def __init__(self, net: nn.Module, black: Tensor, white: Tensor) -> None:
        super().__init__()
        self.net, self.black, self.scale = net, black, white - black
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(self.black.to(pixels) + self.scale.to(pixels) * pixels)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`; afterwards its state is as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
