"""A part of the page: a title, a template and the values it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """`name` is its anchor on the page and, with `.html.jinja`, its template; `link` is the title in few words."""

    name: str
    title: str
    link: str
    values: dict[str, Any] = field(default_factory=dict)
