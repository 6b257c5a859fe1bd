"""Where the events of `ossconsole train` go while it runs: the terminal, TensorBoard, Prometheus, a command."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ossconsole.cli.output import say
from ossconsole.config.errors import ConsoleError

if TYPE_CHECKING:
    from ossconsole.telemetry.events import Event
    from ossconsole.telemetry.sampler import Sampler, TelemetrySample

F = TypeVar("F", bound=Callable[..., Any])
Sink = Callable[["Event"], None]

_FLUSH_EVERY_S = 2.0


def outlet_options(command: F) -> F:
    """Adds the options of `open_outlets` to a command, which gets them by their names."""
    options = (
        click.option(
            "--tensorboard",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Write a TensorBoard event file into this folder while it runs.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Serve /metrics for Prometheus on this port of 127.0.0.1; 0 = a free one.",
        ),
        click.option(
            "--on-event",
            metavar="COMMAND",
            help="Run this command on end, stall, divergence or failure, with JSON on its standard input.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def say_warning(message: str, remedy: str) -> None:
    """Prints a warning on stderr."""
    say(f"{message} {remedy}".strip(), err=True)


class Outlets:
    """Passes each event to every sink, and the samples of GPUs and host to those that show them.

    A sink that fails is dropped after one warning: nothing here may end a run.
    """

    def __init__(self, first: Sink) -> None:
        self.warn: Callable[[str, str], None] = say_warning
        self._sinks: list[Sink] = []
        self._first = first
        self._lock = threading.Lock()

    def add(self, sink: Sink) -> None:
        """Adds a sink, which may raise ConsoleError."""
        self._sinks.append(sink)

    def __call__(self, event: Event) -> None:
        """Takes one event of the run."""
        self._first(event)
        self._pass(event)

    def sample(self, sample: TelemetrySample) -> None:
        """Takes one sample of the machine."""
        self._pass(sample.event())

    def report(self, message: str, remedy: str) -> None:
        """Shows a warning, in the run while it is alive."""
        self.warn(message, remedy)

    def _pass(self, event: Event) -> None:
        failed: list[tuple[str, str]] = []
        with self._lock:
            for sink in self._sinks.copy():
                try:
                    sink(event)
                except ConsoleError as error:  # noqa: PERF203 - each sink fails on its own
                    self._sinks.remove(sink)
                    failed.append((error.message, error.remedy))
        for message, remedy in failed:
            self.warn(message, remedy)


@contextlib.contextmanager
def open_outlets(
    first: Sink, sampler: Sampler, *, tensorboard: Path | None, metrics_port: int | None, on_event: str | None
) -> Iterator[Outlets]:
    """The sinks that the options select, after `first`, which gets the events alone. Raises ConsoleError."""
    outlets = Outlets(first)
    with contextlib.ExitStack() as resources:
        if on_event is not None:
            from ossconsole.telemetry.hooks import EventHook

            hook = EventHook(on_event)
            hook.warn = outlets.report
            resources.callback(hook.close)
            outlets.add(hook)
        if metrics_port is not None:
            from ossconsole.telemetry.metrics import MetricsServer, MetricsState

            state = MetricsState()
            server = MetricsServer(state, metrics_port)
            resources.callback(server.close)
            outlets.add(state)
            say(f"Metrics: {server.url}", err=True)
        if tensorboard is not None:
            from ossconsole.telemetry.export import TensorBoardFolder

            board = TensorBoardFolder(tensorboard)
            resources.callback(_closed, board.close, outlets)
            outlets.add(_flushing(board.add, board.flush))
        if metrics_port is not None or tensorboard is not None:
            sampler.listen(outlets.sample)
            resources.callback(sampler.unlisten, outlets.sample)
        try:
            yield outlets
        finally:
            outlets.warn = say_warning  # the run, whose events a warning was, has ended


def _flushing(add: Sink, flush: Callable[[], None]) -> Sink:
    """`add`, with a flush every few seconds."""
    last = time.monotonic()

    def add_and_flush(event: Event) -> None:
        nonlocal last
        add(event)
        if time.monotonic() - last >= _FLUSH_EVERY_S:
            last = time.monotonic()
            flush()

    return add_and_flush


def _closed(close: Callable[[], None], outlets: Outlets) -> None:
    try:
        close()
    except ConsoleError as error:
        outlets.warn(error.message, error.remedy)
