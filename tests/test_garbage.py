"""The garbage collector is as it was after it had to wait."""

from __future__ import annotations

import gc

import pytest

from graphopt.garbage import collected_later


def _breaks_inside():
    with collected_later():
        with collected_later():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("broken")


def test_the_collector_waits_and_goes_on_after_an_error_too():
    assert gc.isenabled()
    with pytest.raises(ValueError, match="broken"):
        _breaks_inside()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with collected_later():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
