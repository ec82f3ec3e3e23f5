"""How Sphinx builds the documentation: `sphinx-build -W docs docs/_build`."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]  # documents the source next to it

import largesparse  # noqa: E402

project = "largesparse"
author = "The largesparse developers"
release = version = largesparse.__version__

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # this and those below are in docs/extensions
    "public_names",
    "field_comments",
    "command_help",
    "rooms",
]

html_theme = "furo"
html_title = f"largesparse {release}"
html_math_renderer = "mathml"
html_copy_source = False
exclude_patterns = ["_build", "extensions", "jupyter_execute"]  # what myst_nb writes

nb_execution_mode = "auto"  # notebooks are stored without outputs
nb_execution_timeout = 600  # seconds a cell: the first one may compile the kernels
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"  # prompts and what was printed

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as code hosts make them

default_role = "py:obj"  # `name` in a docstring is a link where it can be
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88


def order_pages(app, page, source):
    """Take the order of the pages from the index: a page comes where it is first linked."""
    if page in ("index", "api"):
        below = r"[\w-]+|examples/\w+" if page == "index" else r"api/[\w-]+"
        pages = dict.fromkeys(re.findall(rf"\]\(({below})\.(?:md|ipynb)", source[0]))
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", *pages, "```", ""])


def attach_files(app, page, source):
    """Let links that leave this folder, such as that to the README, offer the file itself."""
    if "/" not in page:
        source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)]+)\)", r"{download}`\1 <\2>`", source[0])


def escape_text(app, kind, name, found, options, lines):
    """Let classes_ and |w| stand in docstrings: to docutils they would be references."""
    special = re.compile(r"(?<=\w)_(?!\w)|\|")
    for k, line in enumerate(lines):
        defined, colon, text = line.partition(" : ")
        if not colon:
            defined, text = "", line
        if not (text.lstrip().startswith((">>>", "...")) or text.strip().isidentifier()):
            pieces = re.split(r"(`[^`]*`)", text)  # what is quoted stays
            pieces[::2] = [special.sub(r"\\\g<0>", piece) for piece in pieces[::2]]
            lines[k] = defined + colon + "".join(pieces)


def shorten_types(app, kind, name, found, options, signature, returns):
    """Write NDArray[int32] for what it stands for."""
    pattern = re.compile(
        r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[([\w.~]+)\]\]"
    )
    return tuple(text and pattern.sub(r"NDArray[\1]", text) for text in (signature, returns))


def setup(app):
    app.connect("autodoc-process-docstring", escape_text, priority=50)  # before napoleon
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("source-read", order_pages)
    app.connect("source-read", attach_files)
