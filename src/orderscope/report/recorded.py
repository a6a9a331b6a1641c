"""What was recorded, and what it cost in runs."""

from __future__ import annotations

from orderscope.report.download import csv_link
from orderscope.report.material import LATER, Material
from orderscope.report.section import Section
from orderscope.report.strip import legend, strip
from orderscope.report.words import count, listed, plain, short
from orderscope.text import number

PARTS = {
    "reference": "trained once, in the recorded order",
    "probes": "trained under other orders: they calibrate predictions and give the error bars",
    "gradients": "of every recorded batch at every kept state",
    "curvature": "pseudo-gradients that say how gradients change off the recorded path",
    "held-out losses": "their gradients where runs ended, and their curvature",
    "table": "all of it put together for predictions, and the probes predicted as if they had not been trained",
    "other": "starting processes, reading data, checking the task",
    "validation": "unseen orders, trained to check the predictions, and the noise floor",
    "search": "scoring orders to propose one",
    "confirmation": "proposed orders, trained to confirm them",
}


def section(material: Material) -> Section:
    total = sum(material.cost.values())
    later = sum(material.cost.get(name, 0.0) for name in LATER)
    parts = [
        {"name": name, "what": PARTS.get(name, ""), "runs": number(runs, 3), "share": f"{100 * runs / total:.1f}"}
        for name, runs in material.cost.items()
        if runs
    ]
    return Section(
        "recorded",
        "What was recorded, and its cost",
        "Cost",
        {
            "facts": _facts(material),
            "parts": parts,
            "total": number(total - later, 3),
            "later": number(later, 3) if later else "",
            "csv": csv_link("cost", ("part", "runs"), ([name, float(runs)] for name, runs in material.cost.items())),
            "training": "" if material.training is None else f"{number(material.training, 2)} s",
            "seconds": ", ".join(f"{name} {number(value, 3)} s" for name, value in material.seconds.items() if value),
            "strip": strip(material.order, material.group_codes, material.group_names, "recorded order"),
            "legend": legend(material.group_names),
        },
    )


def _facts(material: Material) -> list[tuple[str, str]]:
    task = material.facts
    scheduler = f", {task['scheduler']}" if task["scheduler"] else ", constant learning rate"
    clipping = f", gradients clipped at {task['max_grad_norm']:g}" if task["max_grad_norm"] else ""
    start = "from a state in mid-run" if task["warm"] else "from the start of training"
    carried = "all of them carried" if material.carried == task["size"] else f"{material.carried:,} of them carried"
    sets = [
        f"{short(name)} ({count(rows, 'row') if rows is not None else 'a function of the model'})"
        for name, rows in task["metrics"].items()
    ]
    environment = task.get("environment") or {}
    where = [f"{key} {environment[key]}" for key in ("torch", "python", "device", "threads") if environment.get(key)]
    return [
        ("model", f"{plain(task['model'])}, {task['size']:,} trained weights, {carried}"),
        ("window", f"{count(task['steps'], 'step')} of {count(task['batch'], 'sample')}, {start}"),
        ("optimizer", f"{plain(task['optimizer'])}{plain(scheduler)}{clipping}"),
        ("groups", listed([short(n) for n in task["group_names"][:12]]) if material.grouped else "none"),
        ("metrics", listed(sets)),
        ("recorded with", plain(", ".join(where))),
    ]
