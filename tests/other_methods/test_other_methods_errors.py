"""The other methods: a missing solver, an unsupported layer, a time-out and wrong arguments give clear errors."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_other_methods_exact import small
from torch import nn

from local_lipschitz import UnsupportedLayerError
from other_methods.chain import Ball, Box, Chain, random_chain
from other_methods.common import script
from other_methods.common.network import as_network, chain_of
from other_methods.eclipse import eclipse
from other_methods.lipmip import lipmip
from other_methods.lipopt import lipopt
from other_methods.lipsdp import lipsdp
from other_methods.recurjac import recurjac
from other_methods.seqlip import seqlip


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2)), r"'1'.*affine layers, ReLU and max pooling"),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "Tanh"),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten()), "MaxPool.*needs matrices"),
    ],
)
def test_unsupported_layers_are_named(net, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        chain_of(net.eval(), torch.zeros(1, 4))


def test_wrong_arguments_are_told():
    chain, x0 = small(0, (3, 4, 2))
    ball = Ball(x0, 0.1)
    for message, call in (
        ("form is 'all'", lambda: lipsdp(chain, "all")),
        ("form is 'all'", lambda: seqlip(as_network(chain), "all")),
        ("form is 'all'", lambda: eclipse(chain, "all")),
        ("form is 'all'", lambda: recurjac(chain, ball, 2, "all")),
        ("p is 3", lambda: recurjac(chain, ball, 3)),
        ("relaxation is 'none'", lambda: recurjac(chain, ball, 2, relaxation="none")),
        ("works on a box or an l∞ ball", lambda: lipmip(chain, ball)),
        ("norm is '2'", lambda: lipmip(chain, ball, "2")),
        ("2 outputs", lambda: lipopt(chain)),
        ("global version only", lambda: lipsdp(chain, "network", ball)),
        ("positive, finite radius", lambda: Ball(x0, 0.0)),
        ("lower ≤ upper", lambda: Box(x0, x0 - 1)),
        ("has 3 elements, the network reads 4", lambda: recurjac(small(0, (4, 4, 2))[0], ball)),
        ("NaN", lambda: Chain((np.array([[np.nan]]),), (np.zeros(1),))),
        ("do not follow", lambda: Chain((np.ones((2, 3)), np.ones((2, 3))), (np.zeros(2), np.zeros(2)))),
        ("at most 20,000,000", lambda: chain_of(nn.Conv2d(3, 64, 3, padding=1).eval(), torch.zeros(1, 3, 64, 64))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("method", [lipsdp, eclipse])
def test_a_missing_solver(monkeypatch, method):
    chain, _ = small(0, (3, 4, 2))
    with pytest.raises(ValueError, match=r"'MOSEK' is not installed; .* there are: CLARABEL, SCS"):
        method(chain, solver="MOSEK")
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ValueError, match="pip install cvxpy"):
        method(chain)


def test_a_decomposition_that_fails_is_an_error(monkeypatch):
    def fail(*args, **kwargs):
        raise np.linalg.LinAlgError("SVD did not converge")

    chain = random_chain((3, 4, 2))
    monkeypatch.setattr(np.linalg, "svd", fail)
    for form in ("exact", "greedy"):
        with pytest.raises(np.linalg.LinAlgError, match="did not converge"):
            seqlip(as_network(chain), form)


def test_time_outs_of_solvers(monkeypatch):
    """LipMIP and LipSDP give what is proved by then, or say why not; LiPopt, which has nothing by then, says so."""
    chain, x0 = small(0, (10, 30, 30, 3))
    box = Ball(x0, 1.0, np.inf)
    result = lipmip(chain, box, time_limit=0.3)
    assert result.lower <= result.value <= recurjac(chain, box, np.inf) * (1 + 1e-9)
    assert result.gap > 0.01
    monkeypatch.setattr("other_methods.lipopt.linprog", lambda *args, **kwargs: SimpleNamespace(status=1))
    with pytest.raises(TimeoutError, match="did not finish in the 60 s"):
        lipopt(small(0, (3, 4, 1))[0], time_limit=60)
    with pytest.raises(TimeoutError, match="no time is left"):
        lipopt(small(0, (3, 4, 1))[0], time_limit=0.0)
    for method in (lipsdp, eclipse):
        try:
            assert method(chain, solver="CLARABEL", time_limit=0.01) >= lipsdp(chain, "neuron") * (1 - 1e-5)
        except RuntimeError as error:
            assert "user_limit" in str(error)


def test_the_time_limit_of_the_scripts_holds():
    """Whatever the method does: its process is killed, and the script goes on."""
    start = time.monotonic()
    row = script.measure(script.Method("sleep", "local", "l2", True, partial(time.sleep, 500)), 0.5)
    assert time.monotonic() - start < 300
    assert row.value is None and row.failure.startswith("no result within 0.5 s")
    row = script.measure(script.Method("dies", "local", "l2", True, partial(os._exit, 3)), 60)
    assert row.value is None and "exit code 3" in row.failure
    row = script.measure(script.Method("works", "local", "l2", True, partial(float, 3)), 60)
    assert row.value == 3.0 and row.failure == ""
    with pytest.raises(ValueError, match="could not convert"):  # a fault is not a row
        script.measure(script.Method("fault", "local", "l2", True, partial(float, "x")), 60)
    with pytest.raises(ValueError, match="sleep: no result within"):
        script.single(script.Method("sleep", "local", "l2", True, partial(time.sleep, 500)), 0.5, "title")
