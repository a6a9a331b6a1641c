"""Orders in search of a better one: strategies that yield candidates, and the proposal that comes of them."""

# Strategies run in the order they are registered in: rules, then what starts from the best of them.
from orderscope.search.strategies import heuristics as heuristics  # isort: split

from orderscope.search.strategies import curricula as curricula
from orderscope.search.strategies import epochs as epochs  # isort: split

from orderscope.search.constraints import After, Before, Fixed, Share, parse_constraint
from orderscope.search.proposal import Proposal, Row, propose
from orderscope.search.setting import Setting
from orderscope.search.strategies import guided as guided
from orderscope.search.strategies import local as local
from orderscope.search.strategies import mixtures as mixtures
from orderscope.search.strategies import sorts as sorts
from orderscope.search.strategy import STRATEGIES, Scores, Strategy, register

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
