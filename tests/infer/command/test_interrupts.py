"""A Ctrl-C stays one, whatever the code that it hits makes of it."""

import signal

import pytest

from jspec.infer.command.interrupts import interrupts


def test_an_error_made_of_a_ctrl_c_leaves_as_one():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("static arguments should be comparable") from None
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_without_a_ctrl_c_stays_what_it_is():
    with pytest.raises(ValueError, match="ours"), interrupts():
        raise ValueError("ours")
