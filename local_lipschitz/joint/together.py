"""The work on several inputs in step: each goes on until it asks for better multipliers; then all get theirs at once.

A piece of work is a generator that yields problems, is sent the multipliers and returns what it came to. An input by
itself takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .device import problems_at_once
from .interior import NEWTON, SINGLE, improve
from .problems import Problem

X = TypeVar("X")
Work = Generator[Problem, Tensor, X]


def alone(work: Work[X]) -> X:
    """One piece of work."""
    return together([work])[0]


def together(works: Sequence[Work[X]], done: Callable[[int], Any] = lambda count: None) -> list[X]:
    """All of them. done: is told how many are, now and then."""
    results: dict[int, X] = {}
    asked: dict[int, Problem] = {}

    def go_on(i: int, step: Callable[..., Problem], answer: Any) -> None:
        try:
            asked[i] = step(answer)
        except StopIteration as end:
            results[i] = end.value
            done(len(results))

    for i, work in enumerate(works):
        go_on(i, work.send, None)
    while asked:
        answers = dict(zip(asked, _answers(list(asked.values())), strict=True))
        asked.clear()
        for i, answer in answers.items():
            go_on(i, works[i].throw if isinstance(answer, Exception) else works[i].send, answer)
    return [results[i] for i in range(len(works))]


def _answers(problems: list[Problem]) -> list[Tensor | Exception]:
    """Multipliers for each, or why there are none."""
    alike: dict[Any, list[int]] = {}
    for i, p in enumerate(problems):
        alike.setdefault(_kind(p), []).append(i)
    answers: dict[int, Tensor | Exception] = {}
    for same in alike.values():
        same.sort(key=lambda i: len(problems[i].mu))
        while same:
            count = min(len(same), problems_at_once(len(problems[same[-1]].mu), problems[same[-1]].mu.device))
            part, same = same[-count:], same[:-count]
            answers.update(zip(part, _solved([problems[i] for i in part]), strict=True))
    return [answers[i] for i in range(len(problems))]


def _kind(p: Problem) -> tuple:
    """What problems that are solved together have in common."""
    return p.steps, p.last, p.wanted.each, p.wanted.target is None, len(p.mu) <= SINGLE, len(p.mu) <= NEWTON


def _solved(problems: list[Problem]) -> list[Tensor | Exception]:
    try:
        return list(improve(problems))
    except torch.linalg.LinAlgError as error:
        return [error] if len(problems) == 1 else [_solved([p])[0] for p in problems]
