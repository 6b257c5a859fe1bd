"""What joins the stages: queues hold back and close, the gate pauses and stops, the cap keeps the pace."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ossconsole.storage.jobs.threads import BandwidthCap, BoundedQueue, Cancelled, PauseGate, QueueClosed, ThreadPool

WAIT_S = 10.0


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Runs `action`, and collects what it gave or raised."""
    result: list[object] = []

    def main() -> None:
        try:
            result.append(action())
        except (Cancelled, QueueClosed) as error:
            result.append(type(error))

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread, result


def test_a_full_queue_holds_back_until_there_is_room() -> None:
    queue = BoundedQueue[int](2)
    queue.put(1)
    queue.put(2)
    thread, _ = in_thread(lambda: queue.put(3))
    assert len(queue) == 2
    assert queue.get() == 1
    thread.join(WAIT_S)
    assert [queue.get(), queue.get(), queue.poll()] == [2, 3, None]


def test_a_closed_queue_gives_out_what_is_inside() -> None:
    queue = BoundedQueue[int](2)
    queue.put(1)
    queue.close()
    assert queue.get() == 1
    with pytest.raises(QueueClosed):
        queue.get()


def test_closing_wakes_who_waits() -> None:
    queue = BoundedQueue[int](2)
    thread, result = in_thread(queue.get)
    queue.close()
    thread.join(WAIT_S)
    assert result == [QueueClosed]


def test_breaking_off_unwinds_both_sides() -> None:
    queue = BoundedQueue[int](1)
    queue.put(1)
    thread, result = in_thread(lambda: queue.put(2))
    queue.abort()
    thread.join(WAIT_S)
    assert result == [Cancelled]
    with pytest.raises(Cancelled):
        queue.get()


def test_a_paused_gate_holds_until_it_is_resumed() -> None:
    gate = PauseGate()
    gate.check()
    gate.pause()
    thread, result = in_thread(gate.check)
    assert result == []
    gate.resume()
    thread.join(WAIT_S)
    assert result == [None]


def test_a_stopped_gate_unwinds_even_while_paused() -> None:
    gate = PauseGate()
    gate.pause()
    thread, result = in_thread(gate.check)
    gate.cancel()
    thread.join(WAIT_S)
    assert result == [Cancelled]
    with pytest.raises(Cancelled):
        gate.check()


def test_no_more_senders_than_allowed_are_at_work_also_towards_the_end() -> None:
    go, lock, most, working = threading.Event(), threading.Lock(), [0], [0]

    def work(_: int) -> None:
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        go.wait(WAIT_S)
        with lock:
            working[0] -= 1

    pool = ThreadPool(work, PauseGate(), 8, limit=100)
    pool.resize(2)
    for item in range(20):
        pool.put(item)
    go.set()
    pool.finish()
    assert not any(thread.is_alive() for thread in pool.threads)
    assert most[0] <= 8
    pool.abort(Cancelled())
    with pytest.raises(Cancelled):
        pool.put(1)


class LoweringGate(PauseGate):
    """Lowers the size of a pool just after one of its threads has waited for its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: ThreadPool[int] | None = None
        self.lowered = threading.Event()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        super().wait_until(ready, timeout_s)
        if self.pool is not None and threading.current_thread() is self.pool.threads[1]:
            pool, self.pool = self.pool, None
            pool.resize(1)
            self.lowered.set()


def test_a_thread_whose_turn_is_withdrawn_works_again_later() -> None:
    gate, both = LoweringGate(), threading.Barrier(2)
    gate.pause()

    def meet(_: int) -> None:
        both.wait(WAIT_S)

    pool = gate.pool = ThreadPool(meet, gate, 2, limit=8)
    gate.resume()
    assert gate.lowered.wait(WAIT_S)
    pool.resize(2)
    pool.put(1)
    pool.put(2)
    pool.finish()


class Clock:
    """Time that passes only while somebody waits for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class WaitingGate(PauseGate):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        assert timeout_s is not None
        self._clock.now += timeout_s


def test_the_cap_lets_pass_what_it_says_on_average() -> None:
    clock = Clock()
    cap = BandwidthCap(1000.0, WaitingGate(clock), clock)
    for _ in range(100):
        cap.acquire(500)
    assert clock.now == pytest.approx(50, abs=1)


def test_idle_time_does_not_raise_the_rate_limit() -> None:
    clock = Clock()
    cap = BandwidthCap(1000.0, WaitingGate(clock), clock)
    clock.now = 1000.0
    for _ in range(10):
        cap.acquire(1000)
    assert clock.now == pytest.approx(1010, abs=1)


def test_lifting_the_cap_releases_who_waits() -> None:
    cap = BandwidthCap(1.0, PauseGate())
    thread, result = in_thread(lambda: cap.acquire(1_000_000))
    cap.set_limit(None)
    thread.join(WAIT_S)
    assert result == [None]
    assert cap.limit is None
