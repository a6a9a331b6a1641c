"""Shapes of arrays in signatures, as `Float[Tensor, "rows coords"]`.

They are checked at run time where jaxtyping was imported before this module, as tests/conftest.py does. Elsewhere they
say what a caller has to hand over and cost nothing: jaxtyping need not be installed.

Axes that bear the same name in one signature have the same length there:

    steps, batch            of an order                 states, rows       states of replays; those that step together
    orders, runs            asked about; recorded       params, groups     parameters; groups of parameters or samples
    coords                  carried coordinates         units              recorded batches; `new` regrouped ones
    anchors, shared, own    of a unit; of all, its own  entries, terms     of a table; of those that a row uses
    rank                    rows of the curvature       known              known states of held-out losses
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float64, Int, Int32, Int64, Shaped
else:

    class _Unchecked:
        """An annotation that nobody reads."""

        def __class_getitem__(cls, item: Any) -> Any:
            return Any

    Bool = Float = Float64 = Int = Int32 = Int64 = Shaped = _Unchecked

__all__ = ["Bool", "Float", "Float64", "Int", "Int32", "Int64", "Shaped"]
