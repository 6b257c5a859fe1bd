"""Every fault during every operation: once (it is outlasted), and permanently (it is reported, and nothing is lost).

`python -m tests.faults.table` runs all of it and prints the table; by default the cells that take long are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from _pytest.mark.structures import ParameterSet

from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import FaultPlan
from tests.faults.faults import FAULTS, Fault
from tests.faults.machine import MACHINE_FAULTS
from tests.faults.operations import OPERATIONS, Operation, Result, World
from tests.faults.table import REASONS

pytestmark = pytest.mark.timeout(280)
Note = Callable[[str, object], None]

ONCE = 1  # request of each kind that is hit


def touches(fault: Fault, operation: type[Operation]) -> bool:
    return bool(set(fault.operations) & set(operation.kinds))


def cells(*quick: str) -> list[ParameterSet]:
    """All that make sense; only those that `quick` names, an operation or a single cell, are run by default."""
    found = []
    for fault in FAULTS:
        for name, operation in OPERATIONS.items():
            if touches(fault, operation):
                identity = f"{fault.name}-{name}"
                chosen = identity in quick or (name in quick and fault.name not in _TAKE_TIME)
                marks = [] if chosen else [pytest.mark.slow]
                found.append(pytest.param(fault, operation, id=identity, marks=marks))
    return found


_TAKE_TIME = {
    "slow body",
    "silent stall",
    "reset before the reply",
    "429 throttled",
    "throttled for a while",
    "connection refused",
}
_ONCE = (
    "listing",
    "upload",
    "download",
    "one wrong byte-training",
    "reset mid-body-training",
    "wrong CRC-checkpoint",
    "throttled for a while-listing",
)
_FOR_GOOD = (
    "connection refused-listing",
    "malformed listing-listing",
    "403, key rotated-training",
    "one wrong byte-training",
    "connection refused-checkpoint",
    "STS expired-checkpoint",
)


def plan(fault: Fault, operation: Operation, times: int | None) -> FaultPlan:
    """The fault for the requests, and where it says so for the objects, that the operation is about."""
    made = fault.plan([name for name in fault.operations if name in operation.kinds], times)
    rules = [msgspec.structs.replace(rule, key=rule.key or operation.keys) for rule in made.rules]
    return msgspec.structs.replace(made, rules=rules)


def note(record: Note, fault: Fault, kind: type[Operation], how: str, result: Result) -> None:
    """For the table that `python -m tests.faults.table` makes."""
    record("cell", (fault.name, kind.__name__, how, bool(result.problem), result.message, result.seconds, result.total))


def test_every_fault_is_tried_with_every_operation_or_it_is_said_why_not() -> None:
    network = {(fault.name, name) for fault in FAULTS for name, kind in OPERATIONS.items() if touches(fault, kind)}
    machine = {
        (fault.name, name) for fault in MACHINE_FAULTS for name, kind in OPERATIONS.items() if kind in fault.operations
    }
    tried = network | machine
    explained = {(fault, name) for fault, reasons in REASONS.items() for name in reasons}
    assert not tried & explained
    every = {fault.name for fault in (*FAULTS, *MACHINE_FAULTS)}
    assert tried | explained == {(fault, name) for fault in every for name in OPERATIONS}


@pytest.mark.parametrize(("fault", "kind"), cells(*_ONCE))
def test_once(
    fault: Fault, kind: type[Operation], world: World, control: SandboxControl, record_property: Note
) -> None:
    operation = kind(world)
    operation.prepare()
    control.set_faults(plan(fault, operation, ONCE))
    result = operation.run()
    note(record_property, fault, kind, "once", result)
    assert result.total < operation.deadline_s
    if result.problem:
        assert fault.fatal, result.problem
        assert any(word in result.problem for word in fault.words), result.problem
    control.clear_faults()
    again = operation.run()
    assert not again.problem


@pytest.mark.parametrize(("fault", "kind"), cells(*_FOR_GOOD))
def test_for_good(
    fault: Fault, kind: type[Operation], world: World, control: SandboxControl, record_property: Note
) -> None:
    operation = kind(world)
    operation.prepare()
    control.set_faults(plan(fault, operation, None))
    result = operation.run()
    note(record_property, fault, kind, "for good", result)
    assert result.total < operation.deadline_s
    if fault.endless and kind not in [OPERATIONS[name] for name in fault.outlasted]:
        assert result.problem
        assert any(word in result.problem for word in fault.words), result.problem
    else:
        assert not result.problem
    control.clear_faults()
    again = operation.run()
    assert not again.problem
