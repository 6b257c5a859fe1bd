"""Checks the engine on a GPU and measures it, in one command without network or account.

    python -m tests.benchmarks.gpu --minutes 8 [--out FOLDER] [--part NAME ...] [--small]

Parts run in the order of their value, each in a process of its own with a limit: one that fails or hangs does not stop
the next. Ends with a table and `result.json`. `--small` is the form that also runs on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import torchvision

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
    "checkpoint stall": (rates.checkpoint_stall, 40),
    "out of memory": (correctness.out_of_memory, 90),
    "gpu selection": (correctness.gpu_selection, 90),
    "group end": (correctness.group_end, 40),
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


def in_process(action: Callable[[], dict[str, Any]], limit_s: float) -> dict[str, Any]:
    """What the action gives, from a process of its own; forked, as importing torch takes seconds."""
    begun = time.monotonic()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_child, args=(theirs, action))
    child.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv() if ours.poll(limit_s) else _failure(f"not done within {limit_s:.0f} s")
    except EOFError:
        child.join()
        found = _failure(f"the process ended with exit code {child.exitcode}")
    for process in psutil.Process(child.pid).children(recursive=True) if child.is_alive() else ():
        process.kill()
    child.kill()
    child.join()
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def _child(pipe: Connection, action: Callable[[], dict[str, Any]]) -> None:
    os.setpgrp()  # a Ctrl-C is the parent's
    try:
        found = action()
    except Exception:  # noqa: BLE001 - whatever it is, the table names it
        found = _failure(traceback.format_exc()[-3000:])
    pipe.send(found)
    os._exit(0)  # a device that hangs must not keep the process


def _failure(text: str) -> dict[str, Any]:
    return {"ok": False, "figures": {"error": text}}


def _machine() -> dict[str, Any]:
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "cores": CORES,
        "device": "CPU",
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(0)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
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
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    result: dict[str, Any] = {"machine": in_process(_machine, 60), "parts": {}}
    for name in options.part or PARTS:
        limit_s = min(PARTS[name][1], end - time.monotonic())
        if limit_s < 10:
            found = {**_failure("no time was left"), "seconds": 0.0}
        else:
            part = functools.partial(run_part, name, small=options.small, seconds=options.seconds)
            found = in_process(lambda part=part: asdict(part()), limit_s)  # type: ignore[misc]
        result["parts"][name] = found
        sys.stderr.write(f"{name}: {found['seconds']} s\n")
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(result, indent=1))
    sys.stdout.write(_table(result) + "\n")


if __name__ == "__main__":
    main()
