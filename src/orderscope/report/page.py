"""The page: its sections in order, one file with all it needs inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from orderscope import __version__
from orderscope.files import check_output, written
from orderscope.report import curves, heat, limits, matters, memory, proposal, recorded, steps, summary, truth
from orderscope.report.material import Material, Progress, gather
from orderscope.report.onward import onward
from orderscope.report.section import Section
from orderscope.text import plain, plain_lines

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

SECTIONS: tuple[Callable[[Material], Section], ...] = (
    matters.section,
    curves.section,
    proposal.section,
    truth.section,
    steps.section,
    heat.section,
    memory.section,
    recorded.section,
    limits.section,
)


def write_report(
    sim: Simulator,
    out: str | os.PathLike[str],
    *,
    metric: str | None = None,
    orders: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[str]:
    """Write the page about a run; an existing page is replaced only when the new one is complete.

    The same run gives the same bytes. The file asks nothing of a network.

    Args:
        sim: the run, with its task where there is one.
        out: the file to write.
        metric: the one that the page shows first; the task's first metric if not given.
        orders: expressions to show beside those asked before.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The names of the page's sections.

    Raises:
        OrderscopeError: for a metric that was not recorded, an expression that is wrong, or a place that cannot be
            written to.
    """
    check_output(out)
    material = gather(sim, metric=metric, orders=orders, progress=progress)
    sections = [make(material) for make in SECTIONS]
    page = render(material, sections).encode()
    with written(out) as file:
        file.write(page)
    return [section.name for section in sections]


def unbroken_words(command: str) -> Markup:
    """A command that a narrow page breaks between words only, not after the hyphens of an option."""
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(word) for word in command.split(" "))


def render(material: Material, sections: Sequence[Section]) -> str:
    """The page as text. Every name that comes from a run is escaped, and no character of it steers a browser.

    Args:
        material: what the page is about.
        sections: in the order they are shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orderscope.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["words"] = unbroken_words
    environment.globals["section_html"] = lambda section: Markup(
        environment.get_template(f"{section.name}.html.jinja").render(section.values, run=plain(material.path))
    )
    environment.globals["file"] = lambda name: Markup(environment.get_template(name).render())
    page = environment.get_template("page.html.jinja").render(
        title=plain(material.name),
        headline=summary.headline(material),
        story=summary.story(material),
        tiles=summary.tiles(material),
        onward=onward(material),
        order_link=proposal.order_link(material),
        sections=sections,
        version=__version__,
    )
    return plain_lines(page)
