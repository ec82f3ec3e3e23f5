"""Which backend computes a network, and why."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from helpers import backend_or_skip, run_python

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, choice, get_backend
from largesparse.backends import mkl as mkl_module
from largesparse.errors import BackendError, LargeSparseError, ParameterError
from largesparse.machine.environment import BACKEND, CACHE, TOLD

SMALL, WIDE, EXTREME = (20, 30, 3), (5000, 40, 3), (20, 60_000, 3)


@pytest.fixture(autouse=True)
def on_a_new_machine(monkeypatch, tmp_path):
    """Nothing is chosen by the environment, measured or told."""
    for name in (BACKEND, TOLD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


@pytest.fixture
def no_mkl(monkeypatch):
    def load():
        raise BackendError("The 'mkl' backend needs MKL.")

    monkeypatch.setattr(mkl_module, "load", load)


def on_path(monkeypatch, path: str | None) -> None:
    """Let MKL be there, and run a code path."""
    monkeypatch.setattr(mkl_module, "load", lambda: mkl_module)
    monkeypatch.setattr(mkl_module, "loaded_code_path", lambda: path)


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", BACKENDS)
def test_chosen_by_name(name):
    backend = backend_or_skip(name)
    assert backend.name == name
    assert get_backend(name) is backend  # made once in a process


@pytest.mark.parametrize("name", BACKENDS)
def test_chosen_by_environment_variable(monkeypatch, name):
    backend_or_skip(name)
    monkeypatch.setenv(BACKEND, name)
    assert choice.choose_backend() == (name, f"{BACKEND} names it")
    network = SparseMLP(NetworkConfig((4, 3, 2), epsilon=1), progress=False)
    assert Trainer(network, TrainingConfig()).backend.name == name


def test_the_argument_precedes_the_environment_variable(monkeypatch):
    monkeypatch.setenv(BACKEND, "nonsense")
    assert get_backend("scipy").name == "scipy"


@pytest.mark.parametrize("name", ["numpy", "MKL", "base", "kernels", "../mkl"])
def test_bad_names(monkeypatch, name):
    with pytest.raises(ParameterError, match=r"'backend' parameter must be one of \['auto', 'mkl'"):
        get_backend(name)
    monkeypatch.setenv(BACKEND, name)
    with pytest.raises(ParameterError, match=rf"{BACKEND} must be one of .* Got '{name}' instead"):
        get_backend()


@pytest.mark.parametrize("path", ["avx512", "generic", None])
@pytest.mark.parametrize("shape", [SMALL, WIDE, EXTREME, None])
def test_fused_is_taken_where_nothing_was_measured(monkeypatch, shape, path, caplog):
    on_path(monkeypatch, path)
    found = choice.choose_backend("auto", shape)
    assert found.name == "fused" and "measured" in found.reason
    assert choice.choose_backend(None, shape) == found
    assert not warnings_in(caplog)


def test_without_mkl_fused_computes(no_mkl, caplog):
    found = choice.choose_backend()
    assert found.name == "fused"
    network = SparseMLP(NetworkConfig((4, 3, 2), epsilon=1), progress=False)
    X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    trainer = Trainer(network, TrainingConfig(epochs=1, batch_size=4))
    trainer.fit(X, np.arange(8) % 2, progress=False)
    assert trainer.backend.name == "fused"
    assert not any("MKL" in message for message in warnings_in(caplog))


def test_without_mkl_asking_for_it_is_an_error(monkeypatch, no_mkl):
    with pytest.raises(BackendError, match="needs MKL") as caught:
        get_backend("mkl")
    assert isinstance(caught.value, LargeSparseError)
    monkeypatch.setenv(BACKEND, "mkl")
    with pytest.raises(BackendError, match="needs MKL"):
        get_backend()
    assert get_backend("scipy").name == "scipy"


# What was measured


def test_what_was_measured_is_chosen(monkeypatch):
    on_path(monkeypatch, "avx512")
    choice.store_choices({"small": {"backend": "scipy"}, "extreme": {"backend": "fused"}})
    choice.store_choices({"small": {"backend": "mkl", "median_ms": {"mkl": 1.0}}})
    assert choice.stored_choices() == {"small": "mkl", "extreme": "fused"}
    found = choice.choose_backend(None, SMALL)
    assert found.name == "mkl" and "largesparse tune" in found.reason
    assert choice.choose_backend(None, WIDE).name == "fused"
    assert choice.choose_backend(None, EXTREME).name == "fused"
    monkeypatch.setenv(BACKEND, "scipy")
    assert choice.choose_backend(None, SMALL).name == "scipy"


def test_another_cpu_or_version_has_its_own_measurements(monkeypatch):
    choice.store_choices({"small": {"backend": "scipy"}})
    file = choice.machine_file()
    monkeypatch.setattr(choice, "cpu_model", lambda: "another")
    assert choice.machine_file() != file and choice.stored_choices() == {}
    monkeypatch.undo()
    monkeypatch.setattr(choice, "versions", lambda: {"mkl": "1900"})
    assert choice.machine_file() != file


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"small": 3}', '{"small": {}}', '{"small": {"backend": "abacus"}}']
)
def test_a_damaged_file_counts_as_none(text):
    file = choice.machine_file()
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert choice.stored_choices() == {}
    assert choice.choose_backend(None, SMALL).name == "fused"
    choice.store_choices({"small": {"backend": "scipy"}})
    assert choice.stored_choices()["small"] == "scipy"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_cache_folder_that_cannot_be_found_counts_as_none(monkeypatch):
    monkeypatch.setenv(CACHE, "~nobody-has-this-name/cache")
    assert choice.choose_backend(None, SMALL).name == "fused"


# MKL's generic code path

TELL = """
import logging, subprocess, sys
logging.basicConfig(format="%(message)s")
from largesparse.backends import get_backend, mkl
mkl.loaded_code_path = lambda: "generic"
for _ in range(2):
    get_backend("mkl")
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


def test_the_generic_code_path_is_told_once_a_job(tmp_path):
    backend_or_skip("mkl")
    script = tmp_path / "tell.py"
    script.write_text(TELL)
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("generic code path") == 1
    assert "1.2 to 2.4 times" in done.stderr and "largesparse tune" in done.stderr
    other = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "", "PMI_PORT": "0"}
    assert run_python(script, env=dict(os.environ) | other).stderr == ""


def test_it_is_not_told_where_the_path_is_another(caplog):
    backend = backend_or_skip("mkl")
    get_backend("mkl")
    told = any("generic code path" in message for message in warnings_in(caplog))
    assert told == (mkl_module.loaded_code_path() == "generic")
    assert backend.name == "mkl"
