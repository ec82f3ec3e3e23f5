"""Learning curves of run records: one table, and one along the sizes."""

from __future__ import annotations

import pytest

from largesparse.harness import records
from largesparse.harness.curves import curve_figures, curve_table, ladder_table


def run_of(neurons, seed=0, accuracy=(0.5, 0.6, 0.7), **changes):
    """A record of a run of two epochs of 70 rows in mini-batches of 32, 3 updates each."""
    places = ((0.5, 2), (1.0, 3), (1.5, 5), (2.0, 6))
    points = [
        {"epoch": epoch, "samples": 1, "updates": n, "loss": 0.1, "accuracy": 0.1 * n, "seconds": 0}
        for epoch, n in places
    ]
    values = {
        "neurons": neurons,
        "layers": 2,
        "epsilon": 10.0,
        "connections": 20 * neurons,
        "features": 65_536,
        "seed": seed,
        "batch_size": 32,
        "train_samples": 70,
        "test_samples": 100,
        "epoch_s": [10.0, 30.0],
        "accuracy": accuracy and list(accuracy),
        "curve": points,
        "timestamp": f"2026-01-0{1 + seed}",
    }
    return records.new_record("bigmodel", **(values | changes))


@pytest.fixture
def read(tmp_path):
    def read(*runs):
        path = tmp_path / "runs.jsonl"
        path.unlink(missing_ok=True)
        for run in runs:
            records.append_record(path, run)
        return records.read_records(path)

    return read


def test_points_and_epochs_are_in_one_table(read):
    table = curve_table(read(run_of(1000)))
    part, whole = (table[table["rows"] == rows] for rows in ("part", "all"))
    assert part["updates"].tolist() == [2, 3, 5, 6]
    assert part["train_s"].tolist() == [5, 10, 25, 40]
    assert whole[["updates", "train_s", "accuracy"]].to_numpy().tolist() == [
        [0, 0, 0.5],
        [3, 10, 0.6],
        [6, 40, 0.7],
    ]


def test_older_records_and_phase_two_have_no_points(read):
    first = run_of(1000, curve=None)
    replica = run_of(2000, curve=[{"epoch": 1.5, "replica": 1}], accuracy=(0.5, None, 0.7))
    table = curve_table(read(first, replica))
    assert set(table["rows"]) == {"all"}
    assert table["updates"].tolist() == [0, 3, 6, 0, 6]


def test_the_ladder_is_after_the_same_number_of_updates(read):
    short = run_of(3000, epoch_s=[20.0], accuracy=(0.5, 0.8))
    again = run_of(1000, seed=1, accuracy=(0.5, 0.7, 0.9))
    other = run_of(1000, batch_size=128)  # a series of one size
    table = ladder_table(curve_table(read(run_of(1000), again, short, other)))
    assert table["neurons"].tolist() == [1000, 3000]
    assert table["updates"].tolist() == [3, 3]
    assert table["runs"].tolist() == [2, 1]
    assert table["accuracy"].tolist() == pytest.approx([0.65, 0.8])
    assert table["train_s"].tolist() == [10, 20]
    # of 0.6 and 0.7 over 100 rows each, which are 0.049 and 0.046; of 0.8
    assert table["standard_error"].tolist() == pytest.approx([0.0336, 0.04], abs=1e-4)


def test_a_record_without_its_test_rows_has_no_standard_error(read):
    table = ladder_table(curve_table(read(run_of(1000, test_samples=None), run_of(3000))))
    assert table["standard_error"].isna().tolist() == [True, False]


def test_figures_are_drawn_of_what_there_is(read):
    pytest.importorskip("matplotlib")
    assert not curve_figures(curve_table(read(run_of(1000, accuracy=None, curve=None))))
    assert [*curve_figures(curve_table(read(run_of(1000))))] == ["learning"]
    figures = curve_figures(curve_table(read(run_of(1000), run_of(3000))))
    assert [*figures] == ["learning", "ladder"]
    assert len(figures["learning"].axes[0].lines) == 4
    (bars,) = figures["ladder"].axes[0].containers
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.7 - 2 * 0.0458, 0.7 + 2 * 0.0458), abs=1e-3)
