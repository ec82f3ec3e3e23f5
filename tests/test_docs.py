"""What the documentation says and how it is built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
