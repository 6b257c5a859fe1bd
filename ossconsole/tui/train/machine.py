"""The machine panel: GPUs and host. Power is beside utilization, as a GPU that waits for data counts as utilized."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ossconsole.config.text import counted
from ossconsole.telemetry.samples import GpuSample, HostSample
from ossconsole.tui.kit.text import MISSING, Line, joined, percent, safe, shorten, size, wrap
from ossconsole.tui.train.monitor import DashboardContext

HOST_LINES = 3
_BAR = 10
_BARS_FROM = 84


def machine(context: DashboardContext, width: int, height: int) -> list[Line]:
    """A line per GPU, or why there is none, then the host; GPUs that do not fit are summed up."""
    telemetry = context.view.telemetry
    if telemetry is None:
        return [Line((f" GPU   {_nothing(context)}", "dim"))]
    own = context.view.gpus
    gpus, host = (*own, *(gpu for gpu in telemetry.gpus if gpu not in own)), telemetry.host
    room = max(1, height - (1 if host is not None else 0))
    if not gpus:
        problem = safe(telemetry.problem) or "no GPU on this machine"
        lines = [Line((" GPU   ", "dim"), (shorten(problem, width - 8, context.glyphs.ellipsis), "text"))]
    else:
        shown = gpus if len(gpus) <= room else gpus[: room - 1]
        lines = [_gpu(gpu, context, width) for gpu in shown]
        if len(shown) < len(gpus):
            lines.append(_rest(gpus[len(shown) :], width, more=bool(shown)))
    if host is not None:
        lines += _host(host, width, max(1, height - len(lines)), simulated=context.simulated)
    return lines[:height]


def _nothing(context: DashboardContext) -> str:
    return "no data yet" if context.has_controls else "no data in the record so far"


def _name(gpu: GpuSample) -> str:
    return f"GPU {gpu.index}" if gpu.mig is None else f"GPU {gpu.index}.{gpu.mig}"


def _gpu(gpu: GpuSample, context: DashboardContext, width: int) -> Line:
    """One GPU with its metrics in columns; those that do not fit are left out. The run's own are marked."""
    view = context.view
    marked = view.telemetry is not None and len(view.gpus) < len(view.telemetry.gpus) and _is_own(gpu, context)
    line = (
        Line((context.glyphs.running, "good"), (f"{_name(gpu)} ", "text"))
        if marked
        else Line((f" {_name(gpu)} ", "dim"))
    )
    if gpu.problem and gpu.utilization is None and gpu.memory_used is None:
        return line.add(f" {shorten(safe(gpu.problem), width - line.width - 2, context.glyphs.ellipsis)}", "bad")
    wide = width >= _BARS_FROM
    if gpu.utilization is not None:
        line.add(" util ", "dim").extend(_bar(gpu.utilization / 100, context, wide=wide))
        line.add(f"{gpu.utilization:3.0f} %", "strong")
    elif gpu.mig is not None:
        line.add(" utilization n/a (MIG)", "dim")
    if gpu.power is not None:
        limit = f"/{gpu.power_limit:.0f}" if gpu.power_limit else ""
        text = f"{gpu.power:.0f}{limit}".rjust(2 * len(limit) - 1 if limit else 0)
        line.add("  power ", "dim").extend(_bar(_share(gpu.power, gpu.power_limit), context, wide=wide))
        line.add(f"{text} W", "strong")
    if gpu.memory_used is not None and gpu.memory_total:
        line.add("  mem ", "dim").add(f"{gpu.memory_used / 2**30:.1f}/{gpu.memory_total / 2**30:.0f} GiB")
    if gpu.temperature is not None:
        line.add(f"  {gpu.temperature} °C", "text")
    if gpu.throttle:
        line.add(f"  throttled: {', '.join(gpu.throttle)}", "warn")
    clocks = "" if gpu.sm_clock is None else f"  {gpu.sm_clock} MHz"
    name = f"  {safe(gpu.name)}" if gpu.name else ""
    for text in (clocks, name):
        if line.width + len(text) <= width:
            line.add(text, "dim")
    return line


def _is_own(gpu: GpuSample, context: DashboardContext) -> bool:
    return gpu.uuid in {own.uuid for own in context.view.gpus}


def _share(amount: float, whole: float | None) -> float | None:
    return amount / whole if whole else None


def _bar(fraction: float | None, context: DashboardContext, *, wide: bool) -> Line:
    """A short bar, in wide panels only."""
    if not wide or fraction is None:
        return Line()
    full = round(min(1.0, max(0.0, fraction)) * _BAR)
    glyphs = context.glyphs
    return Line((glyphs.bar_full * full, "good"), (glyphs.bar_empty * (_BAR - full), "rule"), (" ", "text"))


def _rest(gpus: Sequence[GpuSample], width: int, *, more: bool) -> Line:
    """The sums and means of the GPUs that have no row."""
    line = Line((f" {counted(len(gpus), 'more GPU' if more else 'GPU')}", "dim"))
    uses = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    if uses:
        line.add("  util ", "dim").add(f"{sum(uses) / len(uses):.0f} %", "strong").add(" (mean)", "dim")
    powers = [gpu.power for gpu in gpus if gpu.power is not None]
    if powers:
        line.add("  power ", "dim").add(f"{sum(powers):.0f} W", "strong").add(" (sum)", "dim")
    problems = sum(bool(gpu.problem) for gpu in gpus)
    if problems:
        line.add(f"  {problems} with a problem", "bad")
    throttled = sum(bool(gpu.throttle) for gpu in gpus)
    if throttled:
        line.add(f"  {throttled} throttled", "warn")
    return line.right(Line(("g: all ", "dim")), width)


def _host(host: HostSample, width: int, height: int, *, simulated: bool) -> list[Line]:
    """The host in at most `height` lines; parts that do not fit are counted."""
    if height < HOST_LINES:
        first, network, own = _host_rows(host, simulated=simulated, brief=True)
        return [_fitted([*first[:2], network[0], *first[2:], *own, *network[1:]], width)]
    rows = _host_rows(host, simulated=simulated)
    return [_fitted(row, width, label="host" if at == 0 else "") for at, row in enumerate(rows)]


def _host_rows(host: HostSample, *, simulated: bool, brief: bool = False) -> list[list[str]]:
    """The metrics of the host, of its network and of this process, the most useful first."""
    of = "/" if brief else " of "
    loopback = f"loopback {size(host.loopback_rate)}/s" if host.loopback_rate is not None else ""
    network = f"net in {size(host.receive_rate)}/s" if host.receive_rate is not None else ""
    own = "" if host.own_cpu is None else f"this process {host.own_cpu:.0f} % CPU, {size(host.own_memory, binary=True)}"
    files = "" if host.own_open_files is None else f"{host.own_open_files} open files"
    rows = [
        [
            "" if host.cpu is None else f"CPU {host.cpu:.0f} % of {host.cores}",
            f"RAM {_of(host.memory_used, host.memory_total, of)}",
        ],
        [
            *((loopback, network) if simulated else (network, loopback)),
            f"out {size(host.send_rate)}/s" if host.send_rate is not None else "",
            f"load {host.load:.1f}",
        ],
        [own, f"{counted(host.own_processes, 'process', 'processes')}", files],
    ]
    return [[part for part in row if part] for row in rows]


def _of(amount: int | None, whole: int | None, of: str) -> str:
    first, second = size(amount, binary=True), size(whole, binary=True)
    if first.split(" ")[-1] == second.split(" ")[-1]:
        first = first.split(" ")[0]
    return f"{first}{of}{second}"


def _fitted(parts: Sequence[str], width: int, label: str = "host") -> Line:
    line = Line((f" {label}".ljust(7), "dim"))
    shown: list[str] = []
    for at, part in enumerate(parts):
        hidden = f"g: {len(parts) - at} more "
        last = at == len(parts) - 1
        if line.width + len(joined((*shown, part))) + (0 if last else 2 + len(hidden)) > width:
            return line.add(joined(shown), "text").right(Line((hidden, "dim")), width)
        shown.append(part)
    return line.add(joined(shown), "text")


def _rows_of(parts: Sequence[str], width: int) -> list[str]:
    """The parts side by side, in as many rows as they need."""
    rows = [""]
    for part in parts:
        together = joined((rows[-1], part))
        rows = [*rows[:-1], together] if len(together) <= width else [*rows, part]
    return rows


def detail_lines(context: DashboardContext, width: int) -> list[Line]:
    """All metrics of all GPUs and of the host."""
    telemetry = context.view.telemetry
    if telemetry is None:
        return [Line((f" {_nothing(context)}", "dim"))]
    lines = [context.heading("GPUs", width)]
    if telemetry.problem:
        lines += [Line((f" {part}", "warn")) for part in wrap(safe(telemetry.problem), width - 2)]
    for gpu in telemetry.gpus:
        lines += [Line(), *_gpu_details(gpu, context, width)]
    lines += [Line(), context.heading("host", width)]
    if telemetry.host is not None:
        rows = _host_rows(telemetry.host, simulated=context.simulated)
        lines += [Line((f" {part}", "text")) for row in rows for part in _rows_of(row, width - 2)]
    return lines


def _gpu_details(gpu: GpuSample, context: DashboardContext, width: int) -> list[Line]:
    lines = [_gpu(msgspec.structs.replace(gpu, name=None), context, width)]
    memory_clock = "" if gpu.memory_clock is None else f"memory clock {gpu.memory_clock} MHz"
    name = safe(gpu.name) if gpu.name else ""
    own = f"this process {size(gpu.own_memory_used, binary=True)}" if gpu.own_memory_used is not None else ""
    used = None if gpu.memory_used is None or not gpu.memory_total else gpu.memory_used / gpu.memory_total
    memory = "" if used is None else f"memory {percent(used)}"
    lines.append(Line((f"        {joined((name, memory_clock, memory, own)) or MISSING}", "text")))
    if gpu.problem:
        lines += [Line((f"        {part}", "bad")) for part in wrap(safe(gpu.problem), width - 10)]
    if gpu.uuid:
        lines.append(Line((f"        {shorten(safe(gpu.uuid), width - 9)}", "dim")))
    return lines
