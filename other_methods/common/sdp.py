"""cvxpy and its solvers for semidefinite programmes, with clear errors where one is missing."""

from __future__ import annotations

import time
import warnings
from types import ModuleType

SDP_SOLVERS = ("CLARABEL", "SCS", "MOSEK", "CVXOPT", "SDPA", "COPT")  # as cvxpy calls them
OPTIONS = {"SCS": {"eps": 1e-6, "max_iters": 100_000}}
TIME_LIMIT = {"CLARABEL": "time_limit", "SCS": "time_limit_secs"}
SHORTEST = 0.1  # seconds, as 0 means no limit to a solver


def cvxpy() -> ModuleType:
    """The module; ValueError where it is not installed."""
    try:
        import cvxpy
    except ImportError:
        raise ValueError("semidefinite programmes need cvxpy, which is not installed: pip install cvxpy") from None
    return cvxpy


def solve(problem, solver: str, time_limit: float | None = None) -> str:
    """Solve a cvxpy problem in place and return its status; the caller repairs what an inaccurate solve leaves.

    time_limit: seconds, of which cvxpy's own translation of the problem takes its part.
    ValueError for a solver that is not installed (it lists those that are), RuntimeError where the solver fails.
    """
    cp = cvxpy()
    installed = [name for name in cp.installed_solvers() if name in SDP_SOLVERS]
    if solver not in installed:
        there = ", ".join(installed) or "none"
        raise ValueError(f"solver {solver!r} is not installed; for semidefinite programmes there are: {there}")
    options = dict(OPTIONS.get(solver, {}))
    if time_limit is not None and solver in TIME_LIMIT:
        start = time.monotonic()
        problem.get_problem_data(solver)  # kept for solve()
        options[TIME_LIMIT[solver]] = max(SHORTEST, time_limit - (time.monotonic() - start))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate"
        try:
            problem.solve(solver=solver, **options)
        except cp.SolverError as error:
            raise RuntimeError(f"{solver} failed: {error}") from None
    return problem.status
