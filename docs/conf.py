"""How Sphinx builds this site. It needs no network, neither to build nor to read: formulas become MathML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import click
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import SphinxDirective, SphinxRole

import orderscope
from orderscope.cli.main import VERBS, main

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import measured

project = "Orderscope"
author = "the Orderscope authors"
copyright = "the Orderscope authors"
version = release = orderscope.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False
napoleon_custom_sections = [("Source", "notes_style")]
default_role = "code"

nitpicky = True
# Types of other projects, whose own pages would have to be fetched to be linked to.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|numpy|concurrent|collections|os|pathlib|typing)\..*"),
    ("py:.*", r"(Tensor|Any|Self|Path|Executor|Callable|Iterable|Iterator|Mapping|Sequence|Module|Optimizer|ndarray)"),
    # Inner parts of public classes, and names of types: without entries of their own.
    ("py:.*", r"orderscope\.(engine|loops\.legs|search\.ledger|search\.scores)\..*"),
    ("py:.*", r"(orderscope\.search\.strategy\.)?(Orders|Kind)"),
]

html_theme = "furo"
html_title = "Orderscope"
html_static_path = ["_static"]
html_css_files = ["orderscope.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"sidebar_hide_name": False}


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None))
    app.add_directive("command-help", CommandHelp)
    app.add_directive("measured", Measured)
    app.add_directive("defaults", Defaults)
    for name in ("figure", "setting"):
        app.add_role(name, Figure(measured.MARKED[name]))
    app.connect("autodoc-process-signature", _plain_defaults)
    return {"parallel_read_safe": True}


class CommandHelp(SphinxDirective):
    """A section for every command, with what its --help prints."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for verb in VERBS:
            with click.Context(main, info_name="orderscope") as parent:
                command = main.get_command(parent, verb)
                assert command is not None
                with click.Context(command, info_name=verb, parent=parent, max_content_width=100) as context:
                    text = command.get_help(context)
            section = nodes.section("", nodes.title("", verb), nodes.literal_block(text, text, language="text"))
            section["ids"], section["names"] = [verb], [verb]
            sections.append(section)
        return sections


class Measured(SphinxDirective):
    """A table of docs/measured: `FILE TABLE`, and the headings of its columns, if not all are wanted."""

    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {"columns": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        name, table = self.arguments
        for file in (name, "defaults"):
            self.env.note_dependency(str(measured.DATA / f"{file}.json"))
        columns = [column.strip() for column in self.options["columns"].split(";")] if self.options else None
        return self.parse_text_to_nodes(measured.markdown(name, table, columns))


class Defaults(SphinxDirective):
    """The settings of today that figures depend on: `estimates` or `search`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(measured.settings_in_markdown(self.arguments[0]))


class Figure(SphinxRole):
    """A figure in a sentence: from the least to the most of some rows, or a default."""

    def __init__(self, rendered: Any) -> None:
        super().__init__()
        self.rendered = rendered

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [nodes.Text(self.rendered(self.text))], []


def _plain_defaults(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Defaults that are made anew, as `<factory>`, are no Python and would spoil the whole signature."""
    return (signature and signature.replace("<factory>", "...")), returns


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _mathml(tex: str, *, block: bool) -> str:
    """MathML that browsers draw themselves; raises where docutils does not know a command."""
    try:
        return tex2mathml(tex, as_block=block)
    except Exception as error:
        raise ValueError(f"formula {tex!r}: {error}") from error
