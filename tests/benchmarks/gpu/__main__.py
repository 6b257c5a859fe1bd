"""Checks the engine on a GPU and measures it, in one command without network or account.

    python -m tests.benchmarks.gpu --minutes 8 [--out FOLDER] [--part NAME ...] [--small]

Parts run in the order of their value, each in a process of its own with a limit: one that fails or hangs does not stop
the next. Ends with a table and `result.json`. `--small` is the form that also runs on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu import correctness, rates
from tests.benchmarks.gpu.setup import CORES, Part, Setup, prepared

PARTS: dict[str, tuple[Callable[[Setup], Part], float]] = {
    "fp16 overflow": (correctness.fp16_overflow, 40),
    "slot reuse": (correctness.slot_reuse, 40),
    "snapshot": (correctness.snapshot, 40),
    "gpu tests": (correctness.gpu_tests, 60),
    "synthetic": (rates.synthetic, 90),
    "host time": (rates.host_time, 40),
    "profile": (rates.profile, 60),
    "loader alone": (rates.loader_alone, 120),
    "whole loop": (rates.whole_loop, 180),
    "out of memory": (correctness.out_of_memory, 90),
    "same endpoint": (rates.same_endpoint, 90),
    "learning": (correctness.learning, 90),
    "transform": (rates.transform, 30),
    "copies": (rates.copies, 40),
    "decode": (rates.decode, 40),
    "compiled": (rates.compiled, 120),
}
"""Each part with its limit in seconds, in the order of their value."""


def run_part(name: str, *, small: bool, seconds: float) -> Part:
    """One part, in this process."""
    action, limit_s = PARTS[name]
    with prepared(small=small, seconds=seconds, limit_s=limit_s) as setup:
        return action(setup)


def _in_process(name: str, options: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """One part in a process of its own: its findings, or why there are none."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--one", name, "--seconds", str(options.seconds)]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--small"] if options.small else command,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
        if not found:
            found = {"ok": False, "figures": {"error": (done.stderr or done.stdout)[-3000:]}}
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        found = {"ok": False, "figures": {"error": str(error)}}
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def _machine() -> dict[str, Any]:
    import torch
    import torchvision

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cores": CORES,
        "device": "CPU",
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(0)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _table(result: dict[str, Any]) -> str:
    lines = [" · ".join(f"{key} {value}" for key, value in result["machine"].items())]
    for name, part in result["parts"].items():
        lines.append(f"{'ok  ' if part['ok'] else 'FAIL'} {name} ({part['seconds']} s)")
        lines += [f"       {key}: {_figure(value)}" for key, value in part["figures"].items()]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after this")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of result.json")
    parser.add_argument("--one", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        try:
            found = asdict(run_part(options.one, small=options.small, seconds=options.seconds))
        except Exception:  # noqa: BLE001 - whatever it is, the table names it
            found = {"ok": False, "figures": {"error": traceback.format_exc()[-3000:]}}
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        sys.stdout.flush()
        os._exit(0)  # a device that hangs must not keep the process
    end = time.monotonic() + options.minutes * 60
    result: dict[str, Any] = {"machine": _machine(), "parts": {}}
    for name in options.part or PARTS:
        left = end - time.monotonic()
        if left < 10:
            result["parts"][name] = {"ok": False, "figures": {"error": "no time was left"}, "seconds": 0.0}
            continue
        result["parts"][name] = _in_process(name, options, min(PARTS[name][1], left))
        sys.stderr.write(f"{name}: {result['parts'][name]['seconds']} s\n")
        (options.out / "result.json").write_text(json.dumps(result, indent=1))
    sys.stdout.write(_table(result) + "\n")


if __name__ == "__main__":
    main()
