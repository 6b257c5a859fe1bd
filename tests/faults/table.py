"""`python -m tests.faults.table [PYTEST OPTIONS]` runs both matrices, slow cells too, and prints them as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_NO_BODY = "its replies have no body"
_IN_THREADS = "works in threads of the console, not in a process"
REASONS: dict[str, dict[str, str]] = {
    "reset mid-body": {"checkpoint": _NO_BODY},
    "reply lost": dict.fromkeys(("listing", "training", "download"), "writes nothing that could have taken effect"),
    "truncated body": {"checkpoint": _NO_BODY},
    "wrong CRC": {"listing": "a listing has no checksum"},
    "one wrong byte": {
        "listing": "a listing has no checksum",
        **dict.fromkeys(("upload", "checkpoint"), "reads no object"),
    },
    "slow body": {"checkpoint": _NO_BODY},
    "404 of a sample": dict.fromkeys(("listing", "upload", "checkpoint"), "reads no object"),
    "malformed listing": dict.fromkeys(("training", "checkpoint"), "lists nothing"),
    "full disk": {"listing": "writes nothing", "checkpoint": "goes from memory to the bucket"},
    "out of shared memory": dict.fromkeys(("listing", "upload", "checkpoint", "download"), "uses none"),
    "worker SIGKILLed": dict.fromkeys(("listing", "download"), _IN_THREADS),
    "worker stopped (SIGSTOP)": dict.fromkeys(("listing", "download"), _IN_THREADS),
}
"""Why a fault does not apply to an operation."""


class Collector:
    """Takes the cells from the reports of the tests; see `note` in test_matrix."""

    def __init__(self, operations: dict[str, str]) -> None:
        """`operations` are the columns: titles by the name of the class."""
        self._operations = operations
        self.cells: dict[tuple[str, str], dict[str, str]] = {}
        self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        self.failed += report.failed
        for name, cell in report.user_properties:
            if name == "cell":
                self._take(cell, passed=report.passed)

    def _take(self, cell: Any, *, passed: bool) -> None:
        fault, operation, how, failed, message, seconds, total = cell
        if not passed:
            text = "**test failed**"
        elif failed:
            text = f"reported after {seconds:.1f} s"
        else:
            text = f"outlasted, {total:.1f} s" + (f" (reported after {seconds:.1f} s)" if message else "")
        self.cells.setdefault((fault, self._operations[operation]), {})[how] = text

    def markdown(self) -> str:
        """One row per fault; in a cell first what happens once, then what stays."""
        columns = list(self._operations.values())
        lines = ["| fault | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for fault in dict.fromkeys(fault for fault, _ in self.cells):
            row = [
                self._cell(self.cells.get((fault, column)), REASONS.get(fault, {}).get(column)) for column in columns
            ]
            lines.append(f"| {fault} | " + " | ".join(row) + " |")
        return "\n".join(lines)

    @staticmethod
    def _cell(found: dict[str, str] | None, reason: str | None) -> str:
        if not found:
            return f"– {reason}" if reason else "not run"
        return "<br>".join(f"{how}: {text}" if how else text for how, text in sorted(found.items(), reverse=True))


class FolderCollector:
    """Takes the cells of test_folders: a row for a folder and what is wrong with it, a column for a command."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, cell in report.user_properties:
            if name == "folder cell":
                self._take(cell, passed=report.passed)

    def _take(self, cell: Any, *, passed: bool) -> None:
        row, command, code = cell
        text = "works" if code == 0 else f"refused in words, exit {code}"
        self.cells.setdefault(row, {})[command] = text if passed else "**test failed**"

    def markdown(self) -> str:
        columns = dict.fromkeys(command for row in self.cells.values() for command in row)
        lines = ["| folder | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for row, cells in self.cells.items():
            lines.append(f"| {row} | " + " | ".join(cells.get(column, "not run") for column in columns) + " |")
        return "\n".join(lines)


def main() -> int:
    # Not above: processes that the tests spawn import this module, and torch would take them longer than a deadline.
    import pytest

    from tests.faults.operations import OPERATIONS

    collector = Collector({kind.__name__: name for name, kind in OPERATIONS.items()})
    options = ["-q", "--no-header", "-m", "slow or not slow", str(Path(__file__).parent), *sys.argv[1:]]
    folders = FolderCollector()
    code = pytest.main(options, plugins=[collector, folders])
    sys.stdout.write(f"\n{collector.markdown()}\n\n{folders.markdown()}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
