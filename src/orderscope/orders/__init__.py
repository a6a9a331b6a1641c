"""Orders of samples: checked, written as expressions, played to a DataLoader."""

from orderscope.orders.checks import as_int64, check_order, check_orders, check_reference
from orderscope.orders.digest import order_hash
from orderscope.orders.expression import in_blocks, mixes_groups, resolve, step_groups
from orderscope.orders.sampler import OrderSampler

__all__ = [
    "OrderSampler",
    "as_int64",
    "check_order",
    "check_orders",
    "check_reference",
    "in_blocks",
    "mixes_groups",
    "order_hash",
    "resolve",
    "step_groups",
]
