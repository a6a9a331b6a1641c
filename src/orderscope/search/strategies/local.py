"""Searches that use scores only."""

from __future__ import annotations

import numpy as np

from orderscope.search.arrange import crossed, neighbour, neighbours
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

ROUND = 24  # orders scored in a round
PATIENCE = 3  # rounds without enough gain before a local search ends or restarts
LEAST = 0.03  # the local search ends if `PATIENCE` rounds gain less than this share of its gain over the reference
POPULATION = 24
MUTATION = 0.3


class LocalSearch(Strategy):
    """Swaps, moves and block moves from the best order of whole batches. Exchanges of samples are not tried: there are
    so many that random ones gain next to nothing, and scoring one costs as much as a training."""

    name, source = "local search", "swaps, moves and block moves from the best so far"
    weight, guided, near = 2.0, True, True

    def orders(self, setting: Setting) -> Orders:
        best = setting.best()
        reference, *bounds = (yield np.stack([setting.order, best])).bound
        while len(bounds) <= PATIENCE or bounds[-PATIENCE - 1] - bounds[-1] > LEAST * (reference - bounds[-1]):
            tried = best[neighbours(np.arange(setting.steps), ROUND, setting.rng)]
            scores = yield tried
            k = int(scores.bound.argmin())
            best = tried[k] if scores.bound[k] < bounds[-1] else best
            bounds.append(min(bounds[-1], float(scores.bound[k])))


class Restarts(Strategy):
    """Local search, restarted from random orders."""

    name, source = "random restarts", "local search from random orders"
    weight, blind = 1.0, True

    def orders(self, setting: Setting) -> Orders:
        steps = setting.rng.permutation(setting.steps)
        (bound,) = (yield setting.order[steps][None]).bound
        idle = 0
        while True:
            tried = neighbours(steps, ROUND, setting.rng)
            scores = yield setting.order[tried]
            k = int(scores.bound.argmin())
            if scores.bound[k] < bound:
                steps, bound, idle = tried[k], scores.bound[k], 0
                continue
            idle += 1
            if idle == PATIENCE:
                steps, idle = setting.rng.permutation(setting.steps), 0
                (bound,) = (yield setting.order[steps][None]).bound


class Genetic(Strategy):
    """A genetic algorithm: tournaments of two, order crossover, mutation by a swap or move; the best quarter
    survives."""

    name, source = "genetic", "the genetic algorithm of FUT, arXiv 2505.22042"
    weight, blind = 1.0, True

    def orders(self, setting: Setting) -> Orders:
        rng = setting.rng
        population = np.stack([rng.permutation(setting.steps) for _ in range(POPULATION)])
        bounds = (yield setting.order[population]).bound
        while True:
            elite = np.argsort(bounds, kind="stable")[: POPULATION // 4]
            children = []
            for _ in range(POPULATION - len(elite)):
                pairs = rng.integers(POPULATION, size=(2, 2))
                mother, father = (population[pair[bounds[pair].argmin()]] for pair in pairs)
                child = crossed(mother, father, rng)
                children.append(neighbour(child, rng) if rng.random() < MUTATION else child)
            scores = yield setting.order[np.stack(children)]
            population = np.concatenate([population[elite], np.stack(children)])
            bounds = np.concatenate([bounds[elite], scores.bound])
