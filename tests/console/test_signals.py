"""A Ctrl-C stays one, whatever the code that it hits makes of it."""

import signal
import threading

import pytest

from jspec.console import signals as interrupts_module
from jspec.console.commands import exit_code
from jspec.console.signals import at_work, interrupts, stop_wish
from jspec.infer.command import output as output_module
from jspec.infer.command.output import Output
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_an_error_made_of_a_ctrl_c_leaves_as_one(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupts():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("static arguments should be comparable") from None
    assert signal.getsignal(number) is before


def test_a_ctrl_c_that_hits_a_destructor_is_not_lost():
    class Rubbish:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def command() -> int:
        Rubbish()
        threading.Event().wait(60)  # until it comes again
        return 0

    assert exit_code(command) == 130


def test_an_error_without_a_ctrl_c_stays_what_it_is():
    with pytest.raises(ValueError, match="ours"), interrupts():
        raise ValueError("ours")


@pytest.fixture
def joined(monkeypatch):
    """As one of several hosts, which here are only this one."""
    monkeypatch.setattr(interrupts_module, "are_joined", lambda: True)
    monkeypatch.setattr(output_module, "are_joined", lambda: True)


def is_wished() -> bool:
    wish = stop_wish()
    return wish is not None and wish()


def test_of_several_hosts_none_is_interrupted_alone(joined):
    with at_work(owns_process=False), interrupts():
        assert not is_wished()
        signal.raise_signal(signal.SIGINT)
        assert is_wished()
    with at_work(owns_process=False):
        assert not is_wished()


def test_on_one_host_nobody_is_asked():
    assert stop_wish() is None


def test_of_several_hosts_the_one_that_cannot_print_asks_all_to_stop(joined, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with at_work(owns_process=False):
        output = Output()
        output.write("text")
        assert "(it is closed)" in str(output.failure) and is_wished()
        output.write("more")  # nothing, and no error


def test_a_wish_to_stop_ends_an_engine_between_chunks():
    engine = Engine(tiny_target(), max_length=64, rounds_per_chunk=2)
    asked = iter((False, True))
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for event in engine.run(
            [Request(tokens=(1, 2), max_new_tokens=40)], should_stop=lambda: next(asked)
        ):
            seen.append(event)
    assert [len(event.tokens) for event in seen] == [1, 2]
