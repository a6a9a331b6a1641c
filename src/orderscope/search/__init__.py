"""The search for a better order: strategies that generate candidates, and the proposal made from the best of them."""

from orderscope.search.constraints import After, Before, Fixed, Share, parse_constraint
from orderscope.search.proposal import propose
from orderscope.search.result import Proposal
from orderscope.search.rows import Row
from orderscope.search.setting import Setting
from orderscope.search.strategies import STRATEGY_TYPES
from orderscope.search.strategy import STRATEGIES, Scores, Strategy, register

for _kind in STRATEGY_TYPES:
    register(_kind)

__all__ = [
    "STRATEGIES",
    "After",
    "Before",
    "Fixed",
    "Proposal",
    "Row",
    "Scores",
    "Setting",
    "Share",
    "Strategy",
    "parse_constraint",
    "propose",
    "register",
]
