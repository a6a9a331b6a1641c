"""The strategies of a search, in the sequence in which they run: rules, then those that start from the best of them.

Users add a strategy at the end with `orderscope.search.register`.
"""

from orderscope.search.strategies.curricula import AbilityGate, AnnealedWeights, ReRanked
from orderscope.search.strategies.epochs import Herding, PairedReversal
from orderscope.search.strategies.even import EvenLoss
from orderscope.search.strategies.guided import Assignment, ConditionalGradient, Descent, Regroup, RegroupByAssignment
from orderscope.search.strategies.heuristics import Interleave, Random, Reference, Reverse
from orderscope.search.strategies.local import Genetic, LocalSearch, Restarts
from orderscope.search.strategies.mixtures import (
    Bandit,
    Blocks,
    DecayOnTheBest,
    DualStage,
    EasyGroupsFirst,
    RepeatedBest,
    Valley,
)
from orderscope.search.strategies.schedules import GroupSchedule
from orderscope.search.strategies.sorts import (
    BracketBorda,
    Compressible,
    ConcentratedFirst,
    EasyFirst,
    HardFirst,
    ImpulseSort,
    InfluenceSort,
    LargeGradientsFirst,
    Learnability,
    LexicalDiversity,
    Readable,
    ShortFirst,
    SmallGradientsFirst,
    UnsureFirst,
    WeakMinusStrong,
)
from orderscope.search.strategy import Strategy

STRATEGY_TYPES: tuple[type[Strategy], ...] = (
    Reference, Reverse, Interleave, EvenLoss, Random,
    AbilityGate, ReRanked, AnnealedWeights, Herding, PairedReversal,
    GroupSchedule,
    Assignment, ConditionalGradient, Descent, Regroup, RegroupByAssignment,
    LocalSearch, Restarts, Genetic,
    Blocks, EasyGroupsFirst, DualStage, DecayOnTheBest, RepeatedBest, Valley, Bandit,
    ShortFirst, Compressible, LexicalDiversity, Readable, EasyFirst, HardFirst, WeakMinusStrong, UnsureFirst,
    ConcentratedFirst, Learnability, SmallGradientsFirst, LargeGradientsFirst, InfluenceSort, ImpulseSort, BracketBorda,
)  # fmt: skip
