"""GPUs and host: power beside utilization, because a GPU that waits for data still counts as used."""

from __future__ import annotations

from ossconsole.telemetry.samples import GpuSample, HostSample
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import Line, joined, number, safe, shorten, size


def machine(context: Context, width: int, height: int) -> list[Line]:
    """A line per GPU (or why there is none), then the host."""
    telemetry = context.view.telemetry
    if telemetry is None:
        return [Line((" GPU  no figures yet", "dim"))]
    gpus = telemetry.gpus
    if not gpus:
        why = safe(telemetry.problem) or "no GPU on this machine"
        lines = [Line((" GPU  ", "dim"), (shorten(why, width - 6, context.glyphs.ellipsis), "text"))]
    else:
        room = max(1, height - 1)
        shown = gpus if len(gpus) <= room else gpus[: room - 1]
        lines = [_gpu(gpu, context, width) for gpu in shown]
        if len(shown) < len(gpus):
            lines.append(_rest(gpus[len(shown) :], more=bool(shown)))
    if telemetry.host is not None and len(lines) < height:
        lines.append(_host(telemetry.host, width, simulated=context.simulated))
    return lines[:height]


def _gpu(gpu: GpuSample, context: Context, width: int) -> Line:
    name = f" GPU {gpu.index}" if gpu.mig is None else f" GPU {gpu.index}.{gpu.mig}"
    line = Line((name, "dim"))
    if gpu.problem and gpu.utilization is None and gpu.memory_used is None:
        return line.add(f"  {shorten(safe(gpu.problem), width - line.width - 3, context.glyphs.ellipsis)}", "bad")
    if gpu.utilization is not None:
        line.add("  util ", "dim").add(f"{gpu.utilization:3.0f} %", "strong")
    if gpu.power is not None:
        limit = f"/{gpu.power_limit:.0f}" if gpu.power_limit else ""
        line.add("  power ", "dim").add(f"{gpu.power:.0f}{limit} W", "strong")
    if gpu.memory_used is not None and gpu.memory_total:
        line.add("  mem ", "dim").add(f"{gpu.memory_used / 2**30:.1f}/{gpu.memory_total / 2**30:.0f} GiB")
    if gpu.temperature is not None:
        line.add(f"  {gpu.temperature} °C", "text")
    extra = Line()
    if gpu.sm_clock is not None:
        extra.add(f"  {gpu.sm_clock} MHz", "dim")
    if gpu.throttle:
        line.add(f"  held back: {', '.join(gpu.throttle)}", "warn")
    if gpu.name and line.width + extra.width + len(gpu.name) + 3 <= width:
        extra.add(f"  {safe(gpu.name)}", "dim")
    return line.extend(extra) if line.width + extra.width <= width else line


def _rest(gpus: tuple[GpuSample, ...], *, more: bool) -> Line:
    """Those there is no row for, together."""
    line = Line((f" {len(gpus)} more GPUs" if more else f" {len(gpus)} GPUs", "dim"))
    uses = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    if uses:
        line.add("  util ", "dim").add(f"{sum(uses) / len(uses):.0f} %", "strong").add(" (mean)", "dim")
    powers = [gpu.power for gpu in gpus if gpu.power is not None]
    if powers:
        line.add("  power ", "dim").add(f"{sum(powers):.0f} W", "strong").add(" (sum)", "dim")
    problems = sum(bool(gpu.problem) for gpu in gpus)
    return line.add(f"  {problems} with a problem", "bad") if problems else line


def _host(host: HostSample, width: int, *, simulated: bool) -> Line:
    network = host.loopback_rate if simulated else host.receive_rate
    label = "loopback" if simulated else "net in"
    parts = [
        f"cpu {host.cpu:.0f} % of {host.cores}",
        f"ram {size(host.memory_used, binary=True)} of {size(host.memory_total, binary=True)}",
        f"{label} {size(network)}/s" if network is not None else "",
        f"shm free {size(host.shared_free, binary=True)}" if host.shared_free is not None else "",
        f"ours {number(host.own_cpu, 3)} % cpu, {size(host.own_memory, binary=True)}"
        if host.own_cpu is not None
        else "",
    ]
    text = ""
    for part in parts:
        if len(joined((text, part))) <= width - 7:
            text = joined((text, part))
    return Line((" host  ", "dim"), (text, "text"))
