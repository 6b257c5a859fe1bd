"""A run's metrics while it runs: a text page on loopback that Prometheus scrapes, in its own format or OpenMetrics."""

from __future__ import annotations

import http.server
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.samples import GpuSample

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""Only programs of this machine can read the metrics."""

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


Labels: TypeAlias = tuple[tuple[str, str], ...]
Labelled: TypeAlias = Mapping[Labels, float | None]


class Family(NamedTuple):
    """A metric: its name (a counter's without `_total`), type, help, and its values by labels."""

    name: str
    kind: str
    text: str
    values: Labelled


_COUNTERS = {
    "steps": "Training steps.",
    "samples": "Samples trained on, of all ranks.",
    "read_bytes": "Bytes read from the bucket, of all ranks.",
    "data_wait_seconds": "Time that the training loop waited for a batch.",
    "step_time_seconds": "Time of the training steps.",
    "warnings": "Warnings of the run.",
}
_LABELLED = ("steps", "samples", "read_bytes", "data_wait_seconds", "step_time_seconds")
_STEP_GAUGES = {
    "samples_per_second": ("samples_per_s", "Samples per second, averaged over the last steps."),
    "train_loss": ("loss", "Training loss of the last step."),
    "learning_rate": ("lr", "Learning rate of the last step."),
    "fetch_seconds": ("fetch_s", "Time that a reader took for the last batch."),
    "batches_read_ahead": ("queued", "Batches that were read ahead at the last step."),
    "epoch": ("epoch", "Current epoch, from 1."),
}
_EPOCH_GAUGES = {
    "val_loss": ("val_loss", "Validation loss of the last epoch."),
    "val_top1_ratio": ("top1", "Top-1 accuracy of the last epoch, 0 to 1."),
}
_GPU_GAUGES = {
    "gpu_utilization_ratio": ("utilization", 0.01, "Utilization of a GPU, 0 to 1."),
    "gpu_memory_used_bytes": ("memory_used", 1.0, "Memory in use on a GPU."),
    "gpu_power_watts": ("power", 1.0, "Power of a GPU."),
}


class MetricsState:
    """The newest value of each metric, from the events of a run; events and readers may be in different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: events.Run | None = None
        self._state = RunState.STARTING
        self._step: events.Step | None = None
        self._epoch: events.Epoch | None = None
        self._checkpoint: events.Checkpoint | None = None
        self._telemetry: events.Telemetry | None = None
        self._sums = {name: dict.fromkeys(map(str, EndpointKind), 0.0) for name in _LABELLED}
        self._warnings = 0

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        with self._lock:
            match event:
                case events.Step():
                    self._add(event)
                case events.Run():
                    self._run = event
                case events.State() | events.Summary():
                    self._state = event.state
                case events.Epoch():
                    self._epoch = event
                case events.Checkpoint():
                    self._checkpoint = event
                case events.Telemetry():
                    self._telemetry = event
                case events.WarningEvent():
                    self._warnings += 1

    def _add(self, step: events.Step) -> None:
        self._step = step
        amounts = (1, step.samples, step.bytes, step.data_wait_s, step.step_time_s)
        for name, amount in zip(_LABELLED, amounts, strict=True):
            sums, endpoint = self._sums[name], str(step.endpoint or "none")
            sums[endpoint] = sums.get(endpoint, 0.0) + amount

    def families(self) -> Iterator[Family]:
        """All metrics; those that are not known yet have no values."""
        with self._lock:
            run, telemetry = self._run, self._telemetry
            info = {} if run is None else {"run": run.run, "version": run.version, "bucket": run.bucket}
            yield Family("run", "info", "The run.", {tuple(info.items()): 1.0} if info else {})
            states: Labelled = {(("state", str(state)),): float(state is self._state) for state in RunState}
            yield Family("run_state", "gauge", "1 for the state of the run, 0 for the others.", states)
            for name in _LABELLED:
                sums: Labelled = {(("endpoint", kind),): value for kind, value in self._sums[name].items()}
                yield Family(name, "counter", _COUNTERS[name], sums)
            yield Family("warnings", "counter", _COUNTERS["warnings"], {(): float(self._warnings)})
            for gauges, source in ((_STEP_GAUGES, self._step), (_EPOCH_GAUGES, self._epoch)):
                for name, (field, text) in gauges.items():
                    yield Family(name, "gauge", text, {(): getattr(source, field, None)})
            written = None if self._checkpoint is None else self._checkpoint.time
            text = "Unix time of the last checkpoint."
            yield Family("last_checkpoint_timestamp_seconds", "gauge", text, {(): written})
            gpus = telemetry.gpus if telemetry is not None else ()
            for name, (field, factor, text) in _GPU_GAUGES.items():
                values: Labelled = {
                    _gpu_labels(gpu): value * factor for gpu in gpus if (value := getattr(gpu, field)) is not None
                }
                yield Family(name, "gauge", text, values)
            cpu = telemetry.host.cpu if telemetry is not None and telemetry.host is not None else None
            text = "Share of the time of all processors of the machine that was used, 0 to 1."
            yield Family("host_cpu_ratio", "gauge", text, {(): None if cpu is None else cpu / 100})


def exposition(families: Iterator[Family], *, openmetrics: bool) -> str:
    """The metrics as text in Prometheus' format 0.0.4, or OpenMetrics 1.0; values that are not known are left out."""
    lines = []
    for family in families:
        values = {labels: value for labels, value in family.values.items() if value is not None}
        if not values:
            continue
        name = f"ossconsole_{family.name}"
        sample = name + {"counter": "_total", "info": "_info"}.get(family.kind, "")
        # The older format has no infos, and its counters are named with their suffix.
        title, kind = (name, family.kind) if openmetrics else (sample, family.kind.replace("info", "gauge"))
        lines += [f"# HELP {title} {family.text}", f"# TYPE {title} {kind}"]
        for labels, value in values.items():
            known = ",".join(f'{label}="{_quoted(text)}"' for label, text in labels)
            lines.append(f"{sample}{{{known}}} {value:.10g}" if known else f"{sample} {value:.10g}")
    return "\n".join([*lines, *(["# EOF"] if openmetrics else [])]) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gpu_labels(gpu: GpuSample) -> Labels:
    known = (("gpu", str(gpu.index)),)
    return known if gpu.mig is None else (*known, ("mig", str(gpu.mig)))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that is gone gets no answer, and no traceback on the terminal."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("A request for the metrics failed", exc_info=error)


class MetricsServer:
    """Serves `/metrics` on loopback from its creation until `close`."""

    def __init__(self, state: MetricsState, port: int) -> None:
        """Port 0 is a free one. Raises ConsoleError where the port cannot be opened."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.split("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                openmetrics = "application/openmetrics-text" in self.headers.get("Accept", "")
                body = exposition(state.families(), openmetrics=openmetrics).encode()
                self.send_response(200)
                self.send_header("Content-Type", OPENMETRICS if openmetrics else PROMETHEUS)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Nothing on the terminal."""

        try:
            self._server = _Server((HOST, port), Handler)
        except OSError as error:
            raise ConsoleError(
                f"Port {port} of {HOST} cannot be opened: {error.strerror}.", remedy="Give another --metrics-port."
            ) from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def url(self) -> str:
        """The address of the metrics."""
        return f"http://{HOST}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
