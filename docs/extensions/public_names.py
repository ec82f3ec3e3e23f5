"""Fills docs/api.md: every name of `largesparse.__all__`, and the modules that users need.

Names are found by the modules that define them. A module that no group below knows gets a group
of its own, so a new public name is documented without a change here.
"""

import importlib
import inspect

import largesparse

GROUPS = {
    "Estimators": ("estimator",),
    "Networks": ("config", "network"),
    "Training": ("training", "history"),
    "Prediction": ("inference",),
    "Data": ("tables", "datasets", "synthetic", "preprocessing"),
    "Saved models": ("checkpoint",),
    "Importance pruning and growth": ("importance", "growth"),
    "Parallel training": ("parallel",),
    "Run records": ("records",),
    "Errors": ("errors",),
}

MODULES = (
    "topology",
    "initializers",
    "activations",
    "recipes",
    "optimizer",
    "evolution",
    "tables",
    "augmentation",
    "export",
    "memory",
    "parallel",
    "parallel.options",
    "parallel.plan",
    "presets",
    "records",
    "tune",
    "limits",
    "backends",
    "backends.base",
    "errors",
)


def defining_module(name):
    """Return the module of a public name, below the package: "parallel.wasap"."""
    return getattr(largesparse, name).__module__.partition(".")[2]


def grouped_names():
    """Return the public names by group, in the order of the groups."""
    group_of = {module: group for group, modules in GROUPS.items() for module in modules}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in largesparse.__all__:
        module = defining_module(name)
        known = group_of.get(module) or group_of.get(module.partition(".")[0])
        groups.setdefault(known or f"largesparse.{module}", []).append(name)
    order = {module: place for place, module in enumerate(group_of)}
    for names in groups.values():
        names.sort(key=lambda name: (order.get(defining_module(name), len(order)), name))
    return {group: names for group, names in groups.items() if names}


def directive(kind, name, **options):
    """Return a directive of autodoc as a block of Markdown."""
    lines = [f"   :{option.replace('_', '-')}: {value}" for option, value in options.items()]
    return "\n".join(["```{eval-rst}", f".. auto{kind}:: {name}", *lines, "```", ""])


def is_ours(found):
    """Say whether a class or function is defined in this library."""
    return (getattr(found, "__module__", None) or "").partition(".")[0] == largesparse.__name__


def inheritance(cls):
    """Return autodoc's options for a class: it names the bases, and has the members of ours."""
    if cls.__bases__ == (object,):
        return {}
    if not any(is_ours(base) for base in cls.__mro__[1:]):
        return {"show_inheritance": ""}
    last = max(place for place, base in enumerate(cls.__mro__) if is_ours(base))
    foreign = [base.__name__ for base in cls.__mro__[last + 1 :]]
    return {"show_inheritance": "", "inherited_members": ", ".join(foreign)}


def public_names():
    """Return the sections of the public names."""
    for group, names in grouped_names().items():
        yield f"## {group}\n"
        for name in names:
            path = f"largesparse.{name}"
            found = getattr(largesparse, name)
            if inspect.isclass(found):
                yield directive("class", path, members="", **inheritance(found))
            else:
                yield directive("function", path)


def modules():
    """Return the sections of the modules, without what is documented elsewhere."""
    yield "## Modules\n"
    for module in MODULES:
        path = f"largesparse.{module}"
        found = importlib.import_module(path)
        taken = [name for name in largesparse.__all__ if defining_module(name) == module]
        for name in getattr(found, "__all__", ()):
            if getattr(getattr(found, name), "__module__", path) != path:
                taken.append(name)
        options = {"exclude_members": ", ".join(taken)} if taken else {}
        if module == "errors":
            options["show_inheritance"] = ""
        yield f"### {path}\n"
        yield directive("module", path, members="", **options)


def fill_page(app, page, source):
    if page == "api":
        source[0] += "\n" + "\n".join([*public_names(), *modules()])
        app.env.note_dependency(largesparse.__file__)
        app.env.note_dependency(__file__)


def skip_foreign(app, kind, name, member, skip, options):
    """Leave out what other libraries add: scikit-learn's methods, the fields of named tuples."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    if name.startswith("set_") and name.endswith("_request"):
        return True
    if inspect.isfunction(function) and not is_ours(function):
        return True
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app):
    app.connect("source-read", fill_page)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
