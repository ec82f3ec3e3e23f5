"""How layers are divided over ranks."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse.errors import ParameterError
from largesparse.parallel.pipeline.split import Stage, split_layers, stages_of


@settings(max_examples=200, deadline=None)
@given(data=st.data(), costs=st.lists(st.floats(0, 1e9), min_size=1, max_size=8))
def test_no_division_has_a_smaller_largest_cost(data, costs):
    ranks = data.draw(st.integers(1, len(costs)))
    stages = split_layers(costs, ranks)
    assert [layer for stage in stages for layer in stage.layers] == list(range(len(costs)))
    assert len(stages) == ranks and all(len(stage.layers) for stage in stages)
    largest = max(sum(costs[stage.first : stage.last]) for stage in stages)
    cuts = combinations(range(1, len(costs)), ranks - 1)
    every = (pairwise((0, *cut, len(costs))) for cut in cuts)
    best = min(max(sum(costs[a:b]) for a, b in division) for division in every)
    assert largest == pytest.approx(best, rel=1e-12)


def test_ranks_without_a_layer_and_costs_that_are_none_are_refused():
    for ranks in (0, 3):
        with pytest.raises(ParameterError, match="1 to 2 ranks"):
            split_layers([1.0, 2.0], ranks)
    with pytest.raises(ParameterError, match="0 or more"):
        split_layers([1.0, float("nan")], 1)


def test_bounds_by_hand_are_stages():
    assert stages_of((0, 3, 5)) == (Stage(0, 3), Stage(3, 5))
    with pytest.raises(ParameterError, match="rise"):
        stages_of((0, 3, 3))
