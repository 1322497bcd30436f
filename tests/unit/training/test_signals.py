"""Reasons for which a run exits: which one is named, and that signal handlers are restored."""

from __future__ import annotations

import os
import signal

import pytest

from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.config import TrainingConfig
from megatron.ltd.training.signals import INTERRUPTED, ExitRequests


def test_exit_duration(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("megatron.ltd.training.signals.time.monotonic", lambda: now[0])
    exits = ExitRequests(TrainingConfig(train_iters=9, exit_duration_in_mins=2.0), mesh)
    now[0] += 119.0
    assert exits.reason(1) is None
    now[0] += 2.0
    assert exits.reason(2) == "--exit-duration-in-mins is over"


def test_a_launcher_that_has_ended(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks outlive a killed torchrun, so they watch for it; without torchrun a parent process may come and go."""
    parents = iter([1, 11, 11, 12, 12])
    monkeypatch.setattr("megatron.ltd.training.signals.os.getppid", lambda: next(parents))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert ExitRequests(TrainingConfig(train_iters=9), mesh).reason(1) is None and next(parents) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    exits = ExitRequests(TrainingConfig(train_iters=9), mesh)
    assert [exits.reason(1) for _ in range(3)] == [None, "the launcher has ended", "the launcher has ended"]


def test_a_signal_outranks_the_clock_and_ctrl_c_outranks_sigterm(mesh: Mesh) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    exits = ExitRequests(TrainingConfig(train_iters=9, exit_duration_in_mins=0.0, exit_interval=1), mesh)
    with exits.listening():
        assert exits.reason(1) == "--exit-duration-in-mins is over"
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits.reason(1) == "SIGTERM arrived"
        os.kill(os.getpid(), signal.SIGINT)
        assert exits.reason(1) == INTERRUPTED
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits.reason(1) == INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            exits.reason(1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_launchers_sigterm_does_not_silence_a_run_that_lost_contact(mesh: Mesh) -> None:
    """Torchrun sends SIGTERM to the ranks that remain, which still have to report why they end."""
    before = signal.getsignal(signal.SIGTERM)
    exits = ExitRequests(TrainingConfig(train_iters=9), mesh)
    try:
        with pytest.raises(RuntimeError, match="gone"), exits.listening():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer: it is gone")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(RuntimeError, match="own"), exits.listening():
        raise RuntimeError("an error of its own")
    assert signal.getsignal(signal.SIGTERM) == before
