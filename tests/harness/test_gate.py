"""benchmarks/gate.py: a slow-down fails, noise does not, an unknown CPU is told how to be added."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The gate with references of its own for this CPU, and without kernels."""
    module = importlib.import_module("benchmarks.gate")
    file = tmp_path / "references.json"
    file.write_text(json.dumps({"here": {"step": {"ratio": 2.0, "tolerance": 0.15}}}))
    monkeypatch.setattr(module, "REFERENCES", file)
    monkeypatch.setattr(module, "cpu_kind", lambda: "here")
    monkeypatch.setattr(module, "calls", lambda: {"step": (lambda: None, None)})
    return module


def answers(module, monkeypatch, *values):
    left = iter(values)
    monkeypatch.setattr(module, "ratio", lambda call, layer: next(left))
    return left


def test_what_stays_slower_fails(gate, monkeypatch, capsys):
    answers(gate, monkeypatch, 2.6, 2.5, 2.0, 2.55, 2.7, 2.1)
    assert gate.main([]) == 1
    assert "SLOWER" in (shown := capsys.readouterr().out) and "--renew" in shown
    left = answers(gate, monkeypatch, 2.6, 2.2, 2.05, 2.0, 9)  # noise, then as it was
    assert gate.main([]) == 0 and next(left) == 9
    answers(gate, monkeypatch, 1.0, 2.0, 1.9, 2.1, *[2.9] * 6)
    assert gate.main(["--times", "3"]) == 1
    assert "passed 2 of 3 times" in capsys.readouterr().out


def test_an_unknown_cpu_passes_and_is_told_what_to_add(gate, monkeypatch, capsys):
    monkeypatch.setattr(gate, "cpu_kind", lambda: "another")
    answers(gate, monkeypatch, 3.0)
    assert gate.main([]) == 0
    shown = capsys.readouterr().out
    added = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    assert added == {"another": {"step": {"ratio": 3.0, "tolerance": 0.18}}}
    answers(gate, monkeypatch, 3.0, 3.1, 3.2, 3.0, 3.0, 3.1, 3.3)
    assert gate.main(["--renew"]) == 0
    references = json.loads(gate.REFERENCES.read_text())
    assert references["another"]["step"] == {"ratio": 3.1, "tolerance": 0.18}
    assert "here" in references
    answers(gate, monkeypatch, 3.2, 3.3)
    assert gate.main([]) == 0


def test_a_planted_slow_down_takes_so_much_longer(gate, monkeypatch):
    class Clock:  # which a look at it moves, as well as the call
        now = 0.0

        def perf_counter(self):
            self.now += 1e-4
            return self.now

        def call(self):
            self.now += 1.0

    clock = Clock()
    monkeypatch.setattr(gate, "time", clock)
    gate.slower(clock.call, 1.5)()
    assert clock.now == pytest.approx(1.5, rel=1e-2)
    assert gate.slower(clock.call, 1.0) == clock.call


def test_references_are_of_known_figures():
    module = importlib.import_module("benchmarks.gate")
    for found in json.loads(module.REFERENCES.read_text()).values():
        assert set(found) == {"step", "evolution"}
        for one in found.values():
            assert one["ratio"] > 0 and module.TOLERANCE[0] <= one["tolerance"] < 0.2
