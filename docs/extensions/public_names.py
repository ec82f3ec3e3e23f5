"""Fills docs/api/ROOM.md: the public names that a room of the package defines, then its modules.

Names and modules are found wherever the package has them, so that they may move. A public name
that is not in ORDER comes after those that are.
"""

import importlib
import inspect
from pathlib import Path

import largesparse

PACKAGE = Path(largesparse.__file__).parent

PAGES = Path(__file__).parents[1] / "api"

ORDER = (
    *("SparseMLPClassifier", "SparseMLPRegressor", "SparseFeatureSelector", "input_strength"),
    *("NetworkConfig", "TrainingConfig", "SparseMLP"),
    *("Trainer", "History", "EpochRecord", "ParallelReport"),
    *("Predictor", "predict", "predict_proba"),
    *("save_model", "load_model", "save_checkpoint", "load_checkpoint"),
    *("neuron_importance", "prune_neurons", "compact", "active_neurons"),
    *("GradientFlow", "InputDegrees"),
    *("Dataset", "load_dataset", "make_large_classification"),
    *("Standardizer", "alpha_from_skewness"),
    *("train_wasap", "train_wassp", "train_pipeline", "load_pipeline"),
    *("read_records", "read_measurements"),
)

# The ends of their dotted paths.
MODULES = (
    "topology",
    "initializers",
    "activations",
    "recipes",
    "optimizer",
    "evolution",
    "tables",
    "augmentation",
    "model.export",
    "torch.export",
    "memory",
    "memory_plan",
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


def module_paths():
    """Return the dotted path below the package of every module, the shortest first."""
    files = (file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py"))
    paths = {".".join(file.parts).removesuffix(".__init__") for file in files}
    return sorted(paths, key=lambda path: (path.count("."), path))


def find_module(name):
    """Return the path below the package of the module whose path ends so."""
    found = [path for path in module_paths() if f".{path}".endswith(f".{name}")]
    if not found:
        raise LookupError(f"docs/extensions/public_names.py: no module {name} in the package")
    return found[0]


def defining_module(name):
    """Return the module of a public name, below the package: "parallel.wasap"."""
    return getattr(largesparse, name).__module__.partition(".")[2]


def room_of(path):
    """Return the room of a module's path below the package, which has a page."""
    room = path.partition(".")[0]
    if not (PAGES / f"{room}.md").exists():
        raise LookupError(f"docs/extensions/public_names.py: docs/api has no page for {path}")
    return room


def names_of(room):
    """Return the public names that a room defines, in their order on its page."""
    names = [name for name in largesparse.__all__ if room_of(defining_module(name)) == room]
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


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


def public_names(room):
    """Return the directives of a room's public names."""
    for name in names_of(room):
        path = f"largesparse.{name}"
        found = getattr(largesparse, name)
        if inspect.isclass(found):
            yield directive("class", path, members="", **inheritance(found))
        else:
            yield directive("function", path)


def modules(room):
    """Return the sections of a room's modules, without what is documented elsewhere."""
    for module in map(find_module, MODULES):
        if room_of(module) != room:
            continue
        path = f"largesparse.{module}"
        found = importlib.import_module(path)
        taken = [name for name in largesparse.__all__ if defining_module(name) == module]
        for name in getattr(found, "__all__", ()):
            if getattr(getattr(found, name), "__module__", path) != path:
                taken.append(name)
        options = {"exclude_members": ", ".join(taken)} if taken else {}
        if module == "errors":
            options["show_inheritance"] = ""
        yield f"## {path}\n"
        yield directive("module", path, members="", **options)


def fill_page(app, page, source):
    folder, _, room = page.rpartition("/")
    if folder == "api":
        source[0] += "\n" + "\n".join([*public_names(room), *modules(room)])
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
