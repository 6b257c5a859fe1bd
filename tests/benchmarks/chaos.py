"""Random faults for a long run: faults of the endpoints, harm to its processes, and its own controls."""

from __future__ import annotations

import contextlib
import functools
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import psutil

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import (
    Action,
    Corrupt,
    Error,
    FaultPlan,
    LostReply,
    Reset,
    Rule,
    Slow,
    Stall,
    Truncate,
    WrongCrc,
)
from ossconsole.sandbox.process import SandboxInfo
from ossconsole.training.remote import control

_READS, _WRITES = ("GetObject",), ("UploadPart", "CompleteMultipartUpload", "CopyObject")

# Which requests, how likely each of them is hit, and what befalls it.
_FAULTS: dict[str, tuple[Sequence[str], float, Action]] = {
    "500 now and then": ((*_READS, *_WRITES), 0.2, Error(code="InternalError")),
    "500 always": ((*_READS, *_WRITES), 1.0, Error(code="InternalError")),
    "503 throttled": ((*_READS, *_WRITES), 0.5, Error(code="ServiceUnavailable", qos_delay_ms=100)),
    "429 throttled": ((*_READS, *_WRITES), 1.0, Error(code="QpsLimitExceeded", qos_delay_ms=100)),
    "403, key rotated": ((*_READS, *_WRITES), 1.0, Error(code="InvalidAccessKeyId")),
    "STS expired": ((*_READS, *_WRITES), 1.0, Error(code="SecurityTokenExpired")),
    "404 of a sample": (_READS, 0.002, Error(code="NoSuchKey", status=404)),
    "reset before the reply": ((*_READS, *_WRITES), 0.2, Reset()),
    "reset mid-body": (_READS, 0.2, Reset(after_bytes=1000)),
    "truncated body": (_READS, 0.2, Truncate(after_bytes=1000)),
    "one wrong byte": (_READS, 0.05, Corrupt()),
    "wrong CRC": ((*_READS, *_WRITES), 0.1, WrongCrc()),
    "reply lost": (_WRITES, 0.5, LostReply()),
    "slow body": (_READS, 0.5, Slow(bytes_per_s=20_000)),
    "silent stall": ((*_READS, *_WRITES), 0.1, Stall(seconds=20)),
}


class Chaos:
    """Injects random faults into a training process and its sandbox; `injected` counts them by name.

    `opening` are the names of the first ones.
    """

    def __init__(
        self,
        info: SandboxInfo,
        process: psutil.Process,
        run: str,
        *,
        seed: int,
        longest_s: float,
        opening: Sequence[str] = (),
    ) -> None:
        # Each endpoint's address steers the whole sandbox; one of them may be out.
        other = info.path_style_endpoint.replace("127.0.0.1", "127.0.0.2")
        self._controls = [
            SandboxControl(each) for each in (info, msgspec.structs.replace(info, path_style_endpoint=other))
        ]
        self._process = process
        self._run = run
        self._dice = random.Random(seed)
        self._longest_s = longest_s
        self._opening = list(opening)
        self.injected: Counter[str] = Counter()
        self._kinds: list[tuple[str, Callable[[], str]]] = [
            *[(name, functools.partial(self._fault, name)) for name in _FAULTS],
            ("outage", self._outage),
            ("both out", self._both_out),
            ("clock skew", lambda: self._plan(FaultPlan(clock_skew_s=3600), "clock skew")),
            *[("switch", self._switch)] * 6,
            *[("pause", self._pause)] * 2,
            ("checkpoint", lambda: self._command(control.SaveCheckpoint(run=run), "checkpoint asked for")),
            ("kill", lambda: self._signal(signal.SIGKILL)),
            ("stop", lambda: self._signal(signal.SIGSTOP)),
        ]

    def inject(self) -> None:
        """Injects the next fault of `opening`, then random ones."""
        named = self._opening.pop(0) if self._opening else self._dice.choice(self._kinds)[0]
        self.injected[dict(self._kinds)[named]()] += 1

    def pause_s(self) -> float:
        """The seconds until the next change, random."""
        return self._dice.uniform(self._longest_s / 10, self._longest_s)

    def outage(self, seconds: float) -> None:
        """The standard endpoint does not answer for `seconds`."""
        self.injected[self._plan(FaultPlan(outages={EndpointKind.STANDARD: seconds}), f"out for {seconds:g} s")] += 1

    def stop(self) -> None:
        """Ends all faults and any pause."""
        self._control(lambda steering: steering.clear_faults())
        self._command(control.Resume(run=self._run), "")

    def _fault(self, name: str) -> str:
        operations, probability, action = _FAULTS[name]
        endpoint = self._dice.choice([None, None, *EndpointKind])
        rules = [
            Rule(action=action, operation=operation, probability=probability, endpoint=endpoint)
            for operation in operations
        ]
        return self._plan(FaultPlan(rules=rules, seed=self._dice.randrange(1 << 30)), name)

    def _outage(self) -> str:
        kind = self._dice.choice(list(EndpointKind))
        return self._plan(FaultPlan(outages={kind: self._dice.uniform(1, 15)}), f"{kind} endpoint out")

    def _both_out(self) -> str:
        seconds = self._dice.uniform(1, 8)
        return self._plan(FaultPlan(outages=dict.fromkeys(EndpointKind, seconds)), "both endpoints out")

    def _switch(self) -> str:
        return self._command(
            control.SwitchEndpoint(run=self._run, endpoint=self._dice.choice(list(EndpointKind))), "switch"
        )

    def _pause(self) -> str:
        if self._dice.random() < 0.5:
            return self._command(control.Pause(run=self._run), "pause")
        return self._command(control.Resume(run=self._run), "resume")

    def _signal(self, number: signal.Signals) -> str:
        """A reader or the writer of checkpoints gets a signal."""
        with contextlib.suppress(psutil.Error):
            victims = [child for child in self._process.children() if "spawn_main" in " ".join(child.cmdline())]
            if victims:
                victim = self._dice.choice(victims)
                victim.send_signal(number)
                return f"{number.name} to a process"
        return "no process to signal"

    def _plan(self, plan: FaultPlan, name: str) -> str:
        return name if self._control(lambda steering: steering.set_faults(plan)) else "no answer: both endpoints out"

    def _control(self, order: Callable[[SandboxControl], None]) -> bool:
        for steering in self._controls:
            with contextlib.suppress(ConsoleError):
                order(steering)
                return True
        return False

    def _command(self, command: control.Command, name: str) -> str:
        try:
            control.ask(self._process.pid, command)
        except control.ControlError as error:
            return f"refused: {error.message}"
        return name
