"""The files of `containers/`: what they install is there, and only Debian and PyPI are asked."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
from helpers import ROOT

FOLDER = ROOT / "containers"
INSTALL = (FOLDER / "install.sh").read_text()
BUILDS = {name: (FOLDER / name).read_text() for name in ("Dockerfile", "largesparse.def")}


def test_the_extras_that_are_installed_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"pip install .*'/src\[([\w,]+)\]'", INSTALL)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert "mpi" in extras.split(",")


def test_both_builds_run_the_script_on_the_same_debian_and_use_what_it_installs():
    places = re.findall(r"venv (/\S+)", INSTALL)
    for text in BUILDS.values():
        assert "sh /src/containers/install.sh" in text and f"PATH={places[0]}/bin:$PATH" in text
        assert re.search(r"(?:COPY|^ +)\s*\. /src$", text, re.M)
    (of_docker,) = re.findall(r"^FROM debian:(\w+)-slim$", BUILDS["Dockerfile"], re.M)
    (of_apptainer,) = re.findall(r"^OSVersion: (\w+)$", BUILDS["largesparse.def"], re.M)
    assert of_docker == of_apptainer
    assert "://" not in INSTALL + "".join(BUILDS.values())  # mirrors are the user's
    assert not re.search(r"index-url|curl|wget|git clone|add-apt", INSTALL)


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
def test_the_script_is_one_of_a_plain_shell():
    assert subprocess.run(["sh", "-n", FOLDER / "install.sh"], check=False).returncode == 0
