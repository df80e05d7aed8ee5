"""What training asks of the machine while it lasts, and gives back."""

import sys

import pytest

from opencoca import recipes
from opencoca.train import loop
from opencoca.train.machine import short_turns


def test_turns_are_short_while_it_lasts_and_as_before_afterwards() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(KeyboardInterrupt), short_turns():
        assert sys.getswitchinterval() == pytest.approx(5e-4, rel=0.01)
        raise KeyboardInterrupt
    assert sys.getswitchinterval() == usual


def test_training_takes_short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def looked(*_: object) -> None:
        seen.append(sys.getswitchinterval())
        raise KeyboardInterrupt

    class Loader:
        def close(self) -> None: ...

    monkeypatch.setattr(loop, "lost_peers_named", looked)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipes.tiny.tiny(), None, None, Loader(), None)  # type: ignore[arg-type]
    assert seen == [pytest.approx(5e-4, rel=0.01)]
