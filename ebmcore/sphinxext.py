"""A Sphinx extension that lists installed components: for ebmcore's own documentation and for that of plugins.

In ``conf.py``::

    extensions = ["ebmcore.sphinxext"]

and in a page::

    .. ebm-components::
       :kind: loss
       :distribution: ebm-plugin-pcd

which gives a table of the components for each kind, with canonical id, version and the summary of the distribution. Without
options it lists everything that is installed. No component is imported, and neither is torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from importlib_metadata import version
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ebmcore import host

HEADINGS = {
    "loss": "Losses",
    "sampler": "Samplers",
    "energy": "Energies",
    "dataset": "Data sets",
    "metric": "Metrics",
    "observer": "Observers",
    "recipe": "Recipes",
    "command": "Commands",
}


class Components(SphinxDirective):
    """``.. ebm-components::``, with the options ``:kind:`` and ``:distribution:``."""

    option_spec: ClassVar = {"kind": lambda text: directives.choice(text, host.KINDS), "distribution": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """A table for each kind of which there is a component."""
        wanted = self.options.get("distribution")
        found = [c for c in host.list_components(self.options.get("kind")) if wanted in (None, c.distribution)]
        if not found:
            raise self.error(
                f"no installed component is of kind {self.options.get('kind', 'any')} and of {wanted or 'any plugin'}"
            )
        summaries = {report.distribution: report.summary for report in host.plugins()}
        result: list[nodes.Node] = []
        for kind in dict.fromkeys(c.kind for c in found):
            rows = [(c.name, c.id, c.version, summaries.get(c.distribution, "")) for c in found if c.kind == kind]
            result += [nodes.rubric(text=HEADINGS[kind]), _table(("name", "canonical id", "version", "distribution"), rows)]
        return result


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> nodes.table:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(headings))
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *(_row(row, literal=2) for row in rows))
    return nodes.table("", group, classes=["ebm-components", "colwidths-auto"])


def _row(cells: Sequence[str], literal: int = 0) -> nodes.row:
    """A row whose first ``literal`` cells are names."""
    texts = [nodes.literal(text=cell) if i < literal else nodes.Text(cell) for i, cell in enumerate(cells)]
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", text)) for text in texts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("ebm-components", Components)
    return {"version": version("ebmcore"), "parallel_read_safe": True, "parallel_write_safe": True}
