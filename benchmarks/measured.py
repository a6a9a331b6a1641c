"""Measured figures as data: docs/measured/*.json, the tables made of them, and the defaults they were measured with.

    python benchmarks/measured.py              # writes README's tables anew from the data

A file has tables, a table has rows. A row names what was measured (its window, its seed), the figures, and where they
come from: date, machine, versions, command, and the stamp of the default settings at that time. `defaults.json` has the
settings behind each stamp. Where the settings of today have another stamp, the row is shown as one by an earlier
version. No table is written by hand: the documentation renders them when it is built, and a test compares README's.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib
import json
import os
import platform
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "docs" / "measured"
README = DATA.parents[1] / "README.md"
OLD = "By an earlier version"
# Where the settings are that decide what is measured: label -> module:name. The numbers are those of the code.
ESTIMATES = {
    "anchors": "recording.budget:DEFAULT.anchors",
    "probes": "recording.budget:DEFAULT.probes",
    "passes of curvature": "recording.budget:DEFAULT.passes",
    "probes, long windows": "recording.budget:LONGER.probes",
    "anchors, mixed batches": "recording.budget:MIXED.anchors",
    "probes, mixed batches": "recording.budget:MIXED.probes",
    "passes of curvature, mixed batches": "recording.budget:MIXED.passes",
    "anchors, few weights carried": "recording.budget:PARTIAL.anchors",
    "probes, few weights carried": "recording.budget:PARTIAL.probes",
    "passes of curvature, few weights carried": "recording.budget:PARTIAL.passes",
    "blurred probes in blocks": "recording.choices:BLURRED",
    "blur of these probes": "recording.choices:BLUR",
    "steps of a window without blurred probes": "recording.choices:UNBLURRED",
    "least probes of which one regroups samples": "recording.choices:LEAST_TO_REGROUP",
    "coordinates": "recording.choices:COORDS",
    "coordinates, mixed batches": "recording.choices:MIXED_COORDS",
    "least coordinates": "recording.choices:LEAST_COORDS",
    "most coordinates": "recording.choices:MOST_COORDS",
    "weights a coordinate, large models": "recording.choices:COORDS_SHARE",
    "least rows of curvature": "recording.choices:LEAST_ROWS",
    "most rows of curvature": "recording.choices:MOST_ROWS",
    "most rows of curvature, mixed batches": "recording.choices:MIXED_ROWS",
    "passes of held-out rows": "recording.choices:HELD_OUT_PASSES",
    "least held-out rows": "recording.choices:LEAST_HELD_OUT",
    "most held-out rows": "recording.choices:MOST_HELD_OUT",
    "bytes of single samples' gradients": "recording.choices:SAMPLE_BYTES",
    "share of the curvature's trace": "engine.raw:ENERGY",
    "share of the curvature's trace, mixed batches": "engine.raw:HIGH_ENERGY",
    "share of the curvature's trace, long windows": "engine.raw:HIGH_ENERGY",
    "steps of a long window": "engine.window:LONG",
    "bytes of a table in full precision": "engine.raw:EXACT_BYTES",
    "ridge of the anchors' weights": "engine.anchors:RIDGE",
    "recorded batches of a regrouped one": "engine.replay:HOMES",
    "weight of the nearest known state": "engine.held_out:NEAREST",
    "coverage of an interval": "engine.error_bars:COVERAGE",
    "least coverage": "engine.error_bars:AT_LEAST",
    "certainty of the least coverage": "engine.error_bars:SURE",
    "usual errors": "engine.error_bars:USUAL",
    "weight of an exact estimator": "engine.error_bars:EXACT",
    "floors of the effect": "engine.error_bars:FLOORS",
    "shares of the errors of the weights": "engine.error_bars:SHARES",
    "factors of regrouped orders": "engine.error_bars:WIDER",
    "runs that the prior counts for": "engine.error_bars:NU",
    "least error in sigma_order": "engine.error_bars:LEAST",
    "farthest trusted order, in probes": "simulation.trusted:FARTHER",
    "most other samples of a trusted order": "simulation.trusted:REPLACED",
    "effort of the proxy": "baselines.proxy:EFFORT",
}
SEARCH = {
    "share of the rows searched": "search.parts:SEARCHED",
    "errors a candidate is charged": "search.strategy:CAUTION",
    "standard errors over rows a candidate is charged": "search.strategy:PENALTY",
    "standard errors by which regrouping has to be better": "search.evidence:CLEAR",
    "sigma_order over noise, nothing to look for": "simulation.verdict:NOTHING",
    "sigma_order over noise, order matters": "simulation.verdict:CLEAR",
}
# What no setting says. Change the words where figures change though all settings stay.
METHOD = (
    "one replay an order, drawn towards recorded ends and corrected by alike runs; held-out losses without the model"
)
SEARCH_METHOD = "on half of the held-out rows, then improved on all of them"


def defaults(of: str = "estimates") -> dict[str, Any]:
    """The settings of today, read from the code.

    Args:
        of: "estimates", or "search" for those of proposals, which rest on estimates.
    """
    settings = {"estimates": ESTIMATES, "search": ESTIMATES | SEARCH}[of]
    methods = {"method": METHOD} | ({"search": SEARCH_METHOD} if of == "search" else {})
    return methods | {label: _setting(place) for label, place in settings.items()}


def _setting(place: str) -> Any:
    module, _, path = place.partition(":")
    value: Any = importlib.import_module(f"orderscope.{module}")
    for name in path.split("."):
        value = getattr(value, name)
    return value


def stamp(settings: Mapping[str, Any]) -> str:
    """A short hash of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read(name: str) -> dict[str, Any]:
    """The tables of docs/measured/NAME.json."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def write(path: Path, tables: Mapping[str, Any]) -> None:
    """One row a line, so that a change shows as the rows it changed."""
    parts = []
    for name, table in tables.items():
        rows = ",\n".join(f"   {json.dumps(row, ensure_ascii=False)}" for row in table["rows"])
        head = json.dumps({key: table[key] for key in table if key != "rows"}, ensure_ascii=False, indent=2)
        parts.append(f' "{name}": {head[:-2].replace(chr(10), chr(10) + " ")},\n  "rows": [\n{rows}\n  ]\n }}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def origin(command: str, of: str | None = "estimates") -> dict[str, Any]:
    """Where a row that is measured now comes from; its settings are kept beside the data.

    Args:
        command: what was run.
        of: as in `defaults`; None where no setting changes the figures.
    """
    found = {
        "date": str(datetime.date.today()),
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "torch": _setting_of_torch(),
        "python": platform.python_version(),
        "command": command,
    }
    if of is None:
        return found
    settings = defaults(of)
    kept = json.loads((DATA / "defaults.json").read_text(encoding="utf-8"))
    if kept.setdefault(stamp(settings), settings) is settings:
        (DATA / "defaults.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return found | {"defaults": stamp(settings)}


def _setting_of_torch() -> str:
    return importlib.import_module("torch").__version__


def merge(path: Path, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put rows into a table; one that measured the same (the table's `key`) before is replaced.

    Args:
        path: a file of docs/measured, with the table in it.
        table: its name.
        rows: each with the fields of the key, `figures`, and what `origin` gives.
    """
    tables = json.loads(path.read_text(encoding="utf-8"))
    key = tables[table]["key"]
    kept = {tuple(row[k] for k in key): row for row in tables[table]["rows"]}
    kept |= {tuple(row[k] for k in key): dict(row) for row in rows}
    tables[table]["rows"] = list(kept.values())
    write(path, tables)


class Several:
    """A figure over several seeds: written as its mean, with the least and the most."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __format__(self, spec: str) -> str:
        mean, least, most = (
            format(v, spec) for v in (sum(self.values) / len(self.values), min(self.values), max(self.values))
        )
        return mean if least == most else f"{mean} ({least} to {most})"


class _Cells(string.Formatter):
    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        if kwargs.get(key) is None:
            raise LookupError(key)
        return kwargs[key]


def cell(pattern: str, row: Mapping[str, Any]) -> str:
    """A row's figures by a format such as "{spearman:.2f}"; nothing where one is missing."""
    try:
        return _Cells().vformat(pattern, (), row)
    except LookupError:
        return ""


def current(row: Mapping[str, Any], of: str | None) -> bool:
    """Whether a row was measured with the settings of today."""
    return of is None or row.get("defaults") == stamp(defaults(of))


def over_seeds(rows: Iterable[Mapping[str, Any]], key: list[str]) -> list[dict[str, Any]]:
    """One row for all seeds of the same, its fields and figures side by side."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in key if k != "seed"), []).append(row)
    found = []
    for same in groups.values():
        values = {k: [row["figures"][k] for row in same if k in row["figures"]] for k in same[0]["figures"]}
        figures = {
            k: Several(v) if len(v) > 1 and all(isinstance(x, (int, float)) for x in v) else v[0]
            for k, v in values.items()
        }
        found.append({k: same[0][k] for k in key if k != "seed"} | {"seeds": len(same)} | figures)
    return found


def grid(table: Mapping[str, Any], rows: list[Mapping[str, Any]], columns: list[str] | None = None) -> list[list[str]]:
    """Heading and rows of a table, as texts in Markdown."""
    patterns = {h: p for h, p in table["columns"].items() if columns is None or h in columns}
    missing = set(columns or ()) - set(patterns)
    if missing:
        raise ValueError(f"no column {sorted(missing)}; there are {list(table['columns'])}")
    joined = over_seeds(rows, table["key"])
    lines = [[cell(pattern, row) for pattern in patterns.values()] for row in joined]
    filled = [i for i in range(len(patterns)) if any(line[i] for line in lines)]
    lines = [[h for i, h in enumerate(patterns) if i in filled], *([line[i] for i in filled] for line in lines)]
    if table.get("transposed"):
        lines = [list(line) for line in zip(*lines, strict=True)]
    return lines


def in_markdown(lines: list[list[str]]) -> str:
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def sources(rows: list[Mapping[str, Any]], key: list[str]) -> str:
    """Where rows come from, in a sentence for each origin."""
    origins: dict[str, list[str]] = {}
    for row in rows:
        machine = row["machine"]
        load = machine["load"] if isinstance(machine["load"], str) else f"load {machine['load']}"
        command = re.sub(r"--seed \d+", "--seed S", row["command"])
        text = f"{row['date']}, torch {row['torch']}, {machine['cores']} cores ({load}), by `{command}`."
        names = origins.setdefault(text, [])
        if (name := str(row[key[0]])) not in names:
            names.append(name)
    if len(origins) == 1:
        return f"Measured {next(iter(origins))}"
    return "Measured:\n\n" + "\n".join(f"- {'; '.join(names)}: {text}" for text, names in origins.items())


def changes(rows: Iterable[Mapping[str, Any]], of: str) -> str:
    """In which settings the rows differ from those of today."""
    kept, now = json.loads((DATA / "defaults.json").read_text(encoding="utf-8")), defaults(of)
    found: dict[str, None] = {}
    new: dict[str, None] = {}
    for mark in dict.fromkeys(row["defaults"] for row in rows):
        then = kept[mark]
        for label, value in now.items():
            if label in then and then[label] != value:
                found[f"{label}: {_shown(then[label])}, now {_shown(value)}"] = None
            elif label not in then and "method" not in {k for k in then if then[k] != now.get(k)}:
                new[label] = None
    if new:
        found[f"new since then: {', '.join(new)}"] = None
    return "; ".join(found)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value))
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def markdown(name: str, table_name: str, columns: list[str] | None = None, *, origins: bool = True) -> str:
    """A table of the data: what the present version gave, then, marked, what was only measured by an earlier one.

    Args:
        name: of the file in docs/measured.
        table_name: of the table in it.
        columns: headings of the columns that are shown; all if not given.
        origins: whether date, machine and command are said.
    """
    table = read(name)[table_name]
    of = table["of"]
    new = [row for row in table["rows"] if current(row, of)]
    what = [key for key in table["key"] if key != "seed"]
    known = {tuple(row[key] for key in what) for row in new}
    old = [row for row in table["rows"] if not current(row, of) and tuple(row[key] for key in what) not in known]
    parts = [] if new or old else ["*Not measured yet.*"]
    for rows in filter(None, (new, old)):
        if rows is old:
            parts.append(f"**{OLD}**, with other settings ({changes(old, of)}):")
        parts.append(in_markdown(grid(table, rows, columns)))
        if origins:
            parts.append(sources(rows, table["key"]))
    return "\n\n".join(parts)


def settings_in_markdown(of: str) -> str:
    lines = [["setting", "default"], *([label, _shown(value)] for label, value in defaults(of).items())]
    return in_markdown(lines) + f"\n\nTheir stamp is `{stamp(defaults(of))}`."


def span(text: str) -> str:
    """From the least to the most of a figure over the present rows of a table (all, marked, if there are none).

    Example: "accuracy windows {cost:.0f}", or "budget measured {spent:.0f} budget=none" for some of its rows.
    """
    name, table_name, pattern, *conditions = text.split()
    table = read(name)[table_name]
    wanted = dict(condition.split("=", 1) for condition in conditions)
    rows = [row for row in table["rows"] if all(str(row[k]) in v.split(",") for k, v in wanted.items())]
    new = [row for row in rows if current(row, table["of"])]
    key = re.sub(r"[{}]|:.*", "", pattern)
    values = sorted(row["figures"][key] for row in new or rows if key in row["figures"])
    least, most = (cell(pattern, {key: value}) for value in (values[0], values[-1]))
    return (least if least == most else f"{least} to {most}") + ("" if new else " (by an earlier version)")


MARKED: dict[str, Callable[[str], str]] = {
    "figure": span,
    "table": lambda text: f"\n\n{markdown(*text.split(maxsplit=2)[:2], _columns(text), origins=False)}\n\n",
    "setting": lambda label: _shown(_setting(label) if ":" in label else defaults("search")[label]),
}
MARK = re.compile(r"<!-- (figure|table|setting): (.*?) -->(.*?)<!-- -->", re.DOTALL)


def _columns(text: str) -> list[str] | None:
    _, _, *rest = text.split(maxsplit=2)
    return [column.strip() for column in rest[0].split(";")] if rest else None


def filled_in(text: str) -> str:
    """A page with all between `<!-- figure: ... -->` (or table, setting) and `<!-- -->` as the data have it."""
    return MARK.sub(lambda m: f"<!-- {m[1]}: {m[2]} -->{MARKED[m[1]](m[2])}<!-- -->", text)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    README.write_text(filled_in(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
