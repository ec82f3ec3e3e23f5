"""What the documentation says and how it is built."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import ROOT

import largesparse
from largesparse import NetworkConfig, SparseMLP, SparseMLPClassifier, TrainingConfig, save_model
from largesparse.backends.operands import PREFETCH_AHEAD, PREFETCH_BYTES
from largesparse.commands.main import main
from largesparse.estimators import label_defaults as labels
from largesparse.estimators.defaults import (
    DROPOUT,
    EPOCH_CELLS,
    EPOCH_ROWS,
    FEWEST_EPOCHS,
    HIDDEN,
    MOST_CONNECTIONS,
    MOST_EPOCHS,
    RATES,
    STOPPING_ROWS,
    UNWATCHED_EPOCHS,
    WEIGHT_DECAY,
    auto_epsilon,
)
from largesparse.estimators.linear_start import LEARNT
from largesparse.training.memory import HEADROOM

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "docs" / "extensions")!r})
extensions = ["myst_parser", "mathml"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
"""


def test_an_equation_is_in_the_page_once(tmp_path):
    pytest.importorskip("myst_parser")
    (tmp_path / "conf.py").write_text(CONF, encoding="utf-8")
    (tmp_path / "index.md").write_text("# T\n\nInline $n_{\\text{in}}$.\n\n$$\n\\frac{a}{b}\n$$\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(tmp_path), str(tmp_path / "built")]
    subprocess.run(command, check=True, timeout=300)
    page = (tmp_path / "built" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") == page.count("<msub>") + page.count("<mfrac>") == 2
    assert not re.search(r"\\[a-z]+", page)


def table_of(page: str, heading: str) -> dict[str, str]:
    """Return the first table under a heading of a page: its first column and its second."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    table = re.search(r"^(\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return dict([cell.strip() for cell in line.split("|")[1:3]] for line in table)


def test_the_docs_have_the_code_s_constants():
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    prefetching = re.search(r"\*\*Prefetching\*\*.* (\d+) connections ahead.* (\d+) MiB", text)
    assert int(prefetching[1]) == PREFETCH_AHEAD
    assert int(prefetching[2]) * 2**20 == PREFETCH_BYTES
    assert f"{100 * HEADROOM:g} % of the memory available" in text
    pruning = table_of("how-it-works.md", "Importance pruning")
    for name in ("pruning_start", "pruning_every", "pruning_percentile"):
        value = getattr(TrainingConfig(), name)
        assert pruning[f"`{name}`"] == ("`None`" if value is None else f"{value:g}")


def test_the_docs_have_the_estimators_defaults():
    told = table_of("choosing.md", "What the estimators take")
    model = SparseMLPClassifier()
    sizes, epsilon = told["`hidden_layer_sizes`, `epsilon`"].split("; ", 1)
    assert sizes == "-".join(map(str, HIDDEN))
    assert float(re.search(r"ε (\d+)", epsilon)[1]) == auto_epsilon((30, 400, 400, 2))
    assert f"{MOST_CONNECTIONS:,} connections" in epsilon
    assert f"{auto_epsilon((88_119, 400, 400, 2)):.1f} at 88,119 features" in epsilon
    assert told["`activation`, `alpha`"] == f"`{model.activation}`, {model.alpha:g}"
    fractions = told["`zeta`, `dropout`"].split(", ")
    assert [float(text) for text in fractions] == [model.zeta, DROPOUT]
    assert f"{WEIGHT_DECAY:.0e}".replace("e-0", "e-") in told["`weight_decay`"]
    rate, rates = told["`learning_rate`"], RATES["softmax_cross_entropy"]
    assert f"`width` {rates['width']:g}" in rate and f"`paper` {rates['paper']:g}" in rate
    epochs = f"from {FEWEST_EPOCHS} to {UNWATCHED_EPOCHS}, or {MOST_EPOCHS} with early stopping"
    assert epochs in told["`max_epochs`"] and f"below {LEARNT:g}" in told["`max_epochs`"]
    assert f"{EPOCH_ROWS:,} rows and {EPOCH_CELLS:,} cells" in told["`max_epochs`"]
    assert f"above {STOPPING_ROWS:,} rows" in told["`early_stopping`"]


def test_the_docs_have_the_defaults_of_several_labels():
    told = table_of("choosing.md", "Several labels a row")
    assert told["`hidden_layer_sizes`"].startswith("-".join(map(str, labels.HIDDEN)))
    density = told["`output_density`"]
    assert f"{labels.OUTPUT_CONNECTIONS:,} connections" in density
    assert f"or {labels.OUTPUT_FAN_IN} a label" in density
    assert f"keeps {labels.OUTPUT_MINIMUM}" in density
    rate, width = told["`learning_rate`"], labels.RATES["width"]
    assert rate.startswith(f"{width:g} where a row has at most {100 * labels.RARE:g} %")
    assert f"down to {width * labels.LEAST_RATE:g}" in rate
    assert f"under {labels.LARGEST_BATCH} rows" in rate
    assert told["`batch_size`"].endswith(f"to {labels.LARGEST_BATCH}")
    epochs = told["`max_epochs`"]
    assert f"from {labels.FEWEST_EPOCHS} to {labels.MOST_EPOCHS}" in epochs
    assert f"{labels.EPOCH_ROWS:,} rows" in epochs
    decay = f"{labels.DROPOUT}; {labels.DECAY:g} over the number of updates, at most 1e-3"
    assert told["`dropout`, `weight_decay`"] == decay
    assert labels.LARGEST_DECAY == 1e-3


def test_the_sample_of_inspect_is_what_it_prints(tmp_path, capsys):
    network = SparseMLP(NetworkConfig((30, 8, 8, 2), epsilon=2))
    network.classes = np.array(["benign", "malignant"])
    save_model(network, tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model"), "--features", "3"]) == 0
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    sample = page.partition("largesparse inspect tumours --features 3\n")[2].partition("```")[0]

    def names(text: str) -> list[str]:
        """What stands before the values, and the titles of columns."""
        lines = text.splitlines()
        return [
            re.sub(" +", " ", line) if line.startswith("  layer") else line[:22].strip()
            for line in lines
            if not line.startswith("  ") or line.startswith("  layer")
        ]

    assert names(sample) == names(capsys.readouterr().out)


def test_the_picture_of_the_rooms_has_every_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    import rooms

    modules, arrows = rooms.read_rooms()
    files = {path.stem for path in rooms.PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert {name.split(".")[-1] for names in modules.values() for name in names} == files
    assert ("parallel", "backends") in arrows
    assert rooms.levels(["a", "b", "c"], {("a", "b"), ("b", "c")}) == [["a"], ["b"], ["c"]]
    drawn = ElementTree.fromstring(rooms.picture())
    assert len(drawn.findall("{*}rect")) == len(modules)


def test_notebooks_are_stored_without_outputs_and_are_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    notebooks = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
    assert [notebook.stem for notebook in notebooks] == ["digits", "microarray", "scaling"]
    for notebook in notebooks:
        assert f"](examples/{notebook.name})" in index
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"] and cell["execution_count"] is None


def test_every_public_name_is_on_the_page_of_its_room(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    import public_names

    pages = {page.stem for page in (ROOT / "docs" / "api").glob("*.md")}
    names = [name for page in pages for name in public_names.names_of(page)]
    assert sorted(names) == sorted(largesparse.__all__)
    contents = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(api/(\w+)\.md\)", contents)) == pages


def test_the_number_of_test_processes_is_told():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tested = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    most = re.search(r"return min\((\d+), available_threads\(\) \+ 1\)", tested)[1]
    assert f"by one process more than cores, at most {most};" in text


def test_the_readme_s_figures_are_those_measured():
    measured = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (epoch, largest, ladder, learned) = re.findall(r"^\| \[.*\|$", readme, re.MULTILINE)

    def cells(heading: str, row: str) -> list[str]:
        """Return the cells of the first row under a heading of measured.md that begins so."""
        section = measured.partition(f"### {heading}\n")[2]
        (line,) = re.findall(rf"^\| {re.escape(row)} \|.*", section, re.MULTILINE)[:1]
        return [cell.strip() for cell in line.split("|")[1:-1]]

    for row in ("`fused`", "`mkl`", "PyTorch, CSR tensors", "SparseLab", "PyTorch, masked dense"):
        assert f"{cells('Every phase', row)[4].split(' ')[0]} s" in epoch
    for row in ("PyTorch, CSR tensors", "SparseLab"):
        assert cells("The largest network in a minute", row)[1] in largest
    neurons = cells("The largest network in a minute", "`fused`")[1].replace(",", "")
    assert f"{int(neurons) / 1e6:.1f}M neurons" in largest
    paper, ours = cells("The ladder of Table 4", "50M")[3].split(" / ")
    assert f"| {ours} |" in ladder and f"{paper} |" in ladder

    accuracy, linear = (
        ", ".join(cell.strip("*") for cell in cells("50M neurons", row)[2::2])
        for row in ("test accuracy (standard error 0.006 to 0.008)", "logistic regression")
    )
    assert f"| {accuracy} | logistic regression {linear};" in learned
    seconds = [float(cell) for cell in cells("50M neurons", "training, s (aim 540)")[1:]]
    least, most = re.findall(r"of (\d+) to (\d+) minutes", learned)[0]
    assert [int(least), int(most)] == [round(s / 60) for s in (min(seconds), max(seconds))]
