"""The architectures of Table 4 and of sizes between its rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largesparse.harness.presets import (
    TABLE_4,
    default_batch_size,
    default_curve,
    default_learning_rate,
    evaluations,
    hidden_sizes,
    most_slots,
    nearest_row,
    nominal_parameters,
)

M = 1_000_000

# Table 4 as printed: architecture, epsilon, neurons, parameters, workers, and minutes of weight
# initialisation, training (an epoch), testing and weight evolution.
PAPER = [
    ((65536, M // 2, M // 2, 2), 10, 1 * M, 20.6, 16, 1, 6, 2.5, 1),
    ((65536, 5 * M // 2, 5 * M // 2, 2), 5, 5 * M, 50.3, 16, 2, 10, 6, 2),
    ((65536, 5 * M, 5 * M, 2), 5, 10 * M, 100.3, 16, 3, 20, 11, 5),
    ((65536, *[5 * M] * 4, 2), 1, 20 * M, 40.3, 8, 5, 26, 18, 6),
    ((65536, *[5 * M] * 10, 2), 1, 50 * M, 100.3, 8, 9, 52, 20, 6),
]


@pytest.mark.parametrize(("row", "paper"), list(zip(TABLE_4, PAPER, strict=True)))
def test_rows_are_those_of_the_paper(row, paper):
    sizes, epsilon, neurons, millions, workers, *minutes = paper
    assert (65536, *hidden_sizes(row.neurons, row.hidden_layers), 2) == sizes
    assert (row.epsilon, row.neurons, row.workers) == (epsilon, neurons, workers)
    assert row.parameters == pytest.approx(millions * 1e6)
    assert [row.init_min, row.epoch_min, row.inference_min, row.evolution_min] == minutes


@pytest.mark.parametrize("paper", PAPER)
def test_nominal_parameters_are_those_of_the_paper(paper):
    sizes, epsilon, _, millions, *_ = paper
    nominal = nominal_parameters(sizes, epsilon)
    if epsilon == 1:
        # The paper's numbers of these two rows are those with 5 connections an input feature, as
        # in the rows above; the formula gives 40.07 and 100.07.
        assert nominal / 1e6 == pytest.approx(millions, rel=0.006)
        nominal += 4 * 65536
    assert 0 <= nominal / 1e6 - millions < 0.1  # the paper cuts the digits off


def test_nominal_parameters_have_no_cap_at_full_density():
    assert nominal_parameters((10, 4, 2), 20) == 20 * (14 + 6)
    assert nominal_parameters((10, 4, 2), 0.5) == 10


@given(st.integers(1, 10**6))
def test_an_epoch_of_recipe_width_has_about_200_updates(rows):
    size = default_batch_size("width", rows)
    assert size in (32, 64, 128) or size == rows < 32
    assert size <= 32 or rows >= 200 * size
    assert size in (128, rows) or rows < 200 * 2 * size
    assert default_batch_size("paper", rows) == min(128, rows)


def test_the_mini_batch_of_the_paper_and_of_its_7000_rows():
    assert [default_batch_size(recipe, 7000) for recipe in ("width", "paper")] == [32, 128]
    assert [default_curve(n, 7000) for n in (999_999, M, 50 * M)] == [(0, 64), (5, 64), (5, 64)]
    assert default_curve(M, 640)[1] == 8
    assert (most_slots("width"), most_slots("paper")) == (1, None)
    assert evaluations(999_999) == {}
    assert evaluations(M) == {"evaluate_first": False, "loss_rows": 256}


@given(st.integers(1, 10**9), st.integers(1, 50))
def test_hidden_sizes_are_equal_and_sum_up(neurons, layers):
    sizes = hidden_sizes(neurons, layers)
    assert len(sizes) == layers
    assert sum(sizes) == neurons
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("neurons", "row"),
    [
        (1, 1 * M),
        (250_000, 1 * M),
        (1 * M, 1 * M),
        (2_200_000, 1 * M),  # the boundary is the geometric mean, 2.236M
        (2_300_000, 5 * M),
        (7 * M, 5 * M),
        (8 * M, 10 * M),
        (14 * M, 10 * M),
        (15 * M, 20 * M),
        (31 * M, 20 * M),
        (32 * M, 50 * M),
        (50 * M, 50 * M),
        (10**9, 50 * M),
    ],
)
def test_other_sizes_follow_the_nearest_row(neurons, row):
    assert nearest_row(neurons).neurons == row


def test_the_paper_trains_every_depth_alike():
    rates = {default_learning_rate("paper", (9,) * layers, 7) for layers in (1, 2, 4, 10)}
    assert rates == {0.01}


def test_deeper_nets_of_recipe_width_get_lower_rates():
    rates = [default_learning_rate("width", (20_000,) * layers, 2400) for layers in range(1, 21)]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] == 5 * rates[9] > 0


def test_narrow_nets_and_short_trainings_of_recipe_width_get_lower_rates():
    rate = default_learning_rate("width", (20_000, 20_000), 2400)
    assert default_learning_rate("width", (20_000, 200), 2400) < rate
    assert default_learning_rate("width", (20_000, 20_000), 10) < rate
    assert default_learning_rate("width", (5_000_000, 5_000_000), 10**6) == rate


def test_small_mini_batches_get_smaller_rates():
    rates = [
        default_learning_rate("width", (10**6,) * 2, 10_000, batch_size=size)
        for size in (8, 32, 128, 512)
    ]
    assert rates == pytest.approx([1, 2, 4, 4])


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [("sgd", [4, 1 / 2, 1 / 4]), ("nesterov", [4, 1 / 2, 1 / 4]), ("adamw", [0.1, 0.05, 0.1 / 3])],
)
def test_stale_gradients_get_a_smaller_learning_rate(optimizer, rates):
    def rate(slots, recipe="width"):
        known = {"slots": slots, "optimizer": optimizer}
        return default_learning_rate(recipe, (10**6,) * 2, 10_000, **known)

    assert [rate(slots) for slots in (1, 2, 3)] == pytest.approx(rates)
    assert rate(8, "paper") == rate(1, "paper") == (0.001 if optimizer == "adamw" else 0.01)


def test_adams_rate_is_divided_by_the_root_of_the_workers_that_will_raise_it():
    adam = [
        default_learning_rate("width", (M,), 10_000, optimizer="adamw", joined=k) for k in (1, 9)
    ]
    assert adam == pytest.approx([0.1, 0.1 / 3])
    sgd = [default_learning_rate("width", (M,), 10_000, joined=k) for k in (1, 9)]
    assert sgd[0] == sgd[1]


@given(st.integers(1, 20), st.integers(10, 10**7), st.sampled_from([8, 32, 128]))
def test_adam_has_one_rate_at_every_depth_and_width(layers, width, size):
    for optimizer in ("adam", "adamw"):
        known = {"optimizer": optimizer, "batch_size": size}
        assert default_learning_rate("width", (width,) * layers, 100, **known) == 0.1
        assert default_learning_rate("width", (width,) * layers, 50, **known) == 0.05
