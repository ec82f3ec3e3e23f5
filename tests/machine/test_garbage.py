"""Python looks for garbage again after what makes many objects, if it did before."""

from __future__ import annotations

import gc

import pytest

from largesparse.machine.garbage import no_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_left_for_a_while(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with no_collection(), pytest.raises(ZeroDivisionError), no_collection():
            assert not gc.isenabled()
            _ = 1 / 0
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
