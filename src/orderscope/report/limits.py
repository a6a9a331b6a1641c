"""Limits of the page's statements, in words; some lines depend on the run."""

from __future__ import annotations

import math

from orderscope.report.material import Material
from orderscope.report.section import Section
from orderscope.report.words import listed, short


def section(material: Material) -> Section:
    return Section("limits", "Limits", "Limits", {"lines": list(_lines(material))})


def _lines(material: Material) -> list[str]:
    unskilled = [short(name) for name in material.metrics if not material.skilled[name]]
    probes = len(material.probes[material.metric])
    lines = [
        "Predictions are estimates. An error bar is meant to hold for nine orders in ten; confirm by training "
        "what a decision depends on, as propose does for its best orders.",
        "They hold for this window, this model, these samples and this optimizer. Nothing here carries over to another "
        "run unless it is recorded too.",
    ]
    if unskilled and probes:
        lines.append(
            f"On the probes, predictions of {listed(unskilled)} were no better than a constant. They are shown, and "
            "marked as not trusted."
        )
    if not probes:
        lines.append("No probes were recorded: predictions have no error bars and are not to be trusted.")
    elif probes < 4:
        lines.append(f"With {probes} probes the error bars themselves are rough; record with more for better ones.")
    if not material.validations:
        lines.append("No unseen orders have been trained to check this run yet: orderscope validate does it.")
    if not math.isfinite(material.effects[material.metric].floor):
        lines.append(
            "The noise floor has not been measured. The noise shown is that of the held-out rows: another choice of "
            "as many would move a difference between two orders by that much."
        )
    if material.carried < material.facts["size"]:
        lines.append(
            f"{material.carried:,} of {material.facts['size']:,} weights are carried; what recorded runs do not span "
            "is estimated from these."
        )
    lines.append(
        "Orders far from everything recorded cannot be estimated. The distance of each order is computed, and "
        "predictions for orders that are too far away are marked."
    )
    lines.append(
        "Curves are drawn at the steps whose state was stored. A curve's band is the error of its last value, narrowed "
        "towards the start, where all orders share the same weights."
    )
    return lines
