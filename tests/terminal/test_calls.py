from __future__ import annotations

import asyncio
import threading

import pytest

from ossconsole.terminal.calls import CallExecutor


def test_calls_without_an_answer_delay_neither_other_calls_nor_the_end() -> None:
    held = threading.Event()
    begun = threading.Barrier(41)

    def hang() -> None:
        begun.wait()
        held.wait()

    async def work() -> str:
        asyncio.get_running_loop().set_default_executor(CallExecutor(patience_s=0.0))
        hanging = [asyncio.create_task(asyncio.to_thread(hang)) for _ in range(40)]
        await asyncio.to_thread(begun.wait)  # all of them are in progress
        answer = await asyncio.to_thread(lambda: "other work")
        with pytest.raises(ValueError, match="of a call"):
            await asyncio.to_thread(int, "of a call")
        for task in hanging:
            task.cancel()
        return answer

    assert asyncio.run(work()) == "other work"
    held.set()


def test_the_end_waits_for_calls_that_are_nearly_done() -> None:
    release, done = threading.Event(), threading.Event()

    def write() -> None:
        release.wait()
        done.set()

    executor = CallExecutor()
    executor.submit(write)
    threading.Thread(target=release.set).start()
    executor.shutdown()
    assert done.is_set()
