"""A section of the page: a title, a template and the values it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: its anchor on the page and, with `.html.jinja`, its template.
        title: its heading.
        link: the title in few words, for the list of sections.
        values: that the template shows, by name.
    """

    name: str
    title: str
    link: str
    values: dict[str, Any] = field(default_factory=dict)
