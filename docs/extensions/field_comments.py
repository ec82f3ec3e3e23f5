"""Documents the fields of a dataclass by the comments behind them in its source."""

import dataclasses
import inspect
import io
import tokenize


def comments(cls):
    """Return the comment at the end of each line of a class's source, by the line's first word."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    found, lines = {}, source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline):
        if token.type == tokenize.COMMENT:
            line = lines[token.start[0] - 1].strip()
            found[line.partition(":")[0]] = token.string.lstrip("# ")
    return found


def default_of(field):
    """Return how a field's default reads in the documentation."""
    if field.default is not dataclasses.MISSING:
        return f", default {field.default!r}"
    return "" if field.default_factory is dataclasses.MISSING else ", optional"


def add_parameters(app, kind, name, cls, options, lines):
    """Append a section of parameters, unless the docstring describes them itself."""
    if kind != "class" or not dataclasses.is_dataclass(cls):
        return
    if {"Parameters", "Attributes"} & set(lines):
        return
    meanings = comments(cls)
    fields = [field for field in dataclasses.fields(cls) if not field.name.startswith("_")]
    lines += ["", "Parameters", "----------"]
    for field in fields:
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        lines.append(f"{field.name} : {kind}{default_of(field)}")
        # A vertical bar would be the start of a substitution, an asterisk of emphasis.
        meaning = meanings.get(field.name, "").replace("|", "\\|").replace("*", "\\*")
        lines += [f"    {meaning}"] if meaning else []
    lines.append("")


def setup(app):
    app.connect("autodoc-process-docstring", add_parameters, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
