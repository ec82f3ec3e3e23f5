"""Equations as MathML, which browsers draw themselves: no script, no font, no network."""

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def convert(translator, node, as_block):
    """Write an equation into the page, as MathML or, with a warning, as it stands in the source."""
    try:
        equation = tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("%s In: %s", error, node.astext(), location=node)
        return
    translator.body.append(f'<div class="math">{equation}</div>' if as_block else equation)
    raise SkipNode  # or the source of the equation would follow as text


def visit_inline(translator, node):
    convert(translator, node, as_block=False)


def visit_block(translator, node):
    convert(translator, node, as_block=True)


def depart(translator, node):
    pass


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, depart), (visit_block, depart))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
