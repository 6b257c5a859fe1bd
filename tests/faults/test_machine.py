"""Faults of the machine during every operation: nothing hangs, nothing is half-written, and the cause is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _pytest.mark.structures import ParameterSet

from ossconsole.sandbox.control import SandboxControl
from tests.faults.machine import MACHINE_FAULTS, MachineFault, Struck
from tests.faults.operations import OPERATIONS, Operation, World

pytestmark = pytest.mark.timeout(280)

_QUICK = {
    "DNS failure-training",
    "full disk-training",
    "full disk-download",
    "descriptors used up-upload",
    "descriptors used up-training",
    "out of shared memory-training",
    "worker stopped (SIGSTOP)-upload",
}


def cells() -> list[ParameterSet]:
    found = []
    for fault in MACHINE_FAULTS:
        for name, operation in OPERATIONS.items():
            if operation in fault.operations:
                identity = f"{fault.name}-{name}"
                marks = [] if identity in _QUICK else [pytest.mark.slow]
                found.append(pytest.param(fault, operation, id=identity, marks=marks))
    return found


@pytest.mark.parametrize(("fault", "kind"), cells())
def test_cell(  # noqa: PLR0917 - fixtures
    fault: MachineFault,
    kind: type[Operation],
    world: World,
    control: SandboxControl,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operation = kind(world)
    operation.prepare()
    with monkeypatch.context() as patch, fault.strike(Struck(operation, control, patch)):
        result = operation.run()
    record_property(
        "cell", (fault.name, kind.__name__, "", bool(result.problem), result.message, result.seconds, result.total)
    )
    assert result.total < operation.deadline_s
    if kind in fault.outlasted:
        assert not result.problem
    else:
        assert any(word in result.problem for word in fault.words), result.problem
    if result.message:
        assert any(word in result.message for word in fault.words), result.message
    control.clear_faults()
    again = operation.run()
    assert not again.problem
