"""The failover of a run, with the loader below it and the probes of endpoints in the test's hands."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry import events
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.failover import FailoverLoader
from ossconsole.training.loading.loader import LoaderError
from ossconsole.training.plan import BatchRequest, Split
from ossconsole.training.settings import TrainSettings

PROFILE = Profile(
    name="two",
    region="cn-hangzhou",
    bucket="pictures",
    standard_endpoint="http://127.0.0.1:1",
    accelerated_endpoint="http://127.0.0.1:2",
    dataset_prefix="data",
)
NO_KEY = StorageError("It does not exist.", status=404, code="NoSuchKey")
UNREACHABLE = StorageError("No answer.", retriable=True)
ARCHIVED = StorageError("It is archived.", remedy="Restore it.", status=403, code="InvalidObjectState")


def batch(failed: str = "") -> Any:
    request = BatchRequest(0, 1, Split.TRAIN, 0, np.array([2, 1]), last=True)
    return SimpleNamespace(request=request, failed=failed, failed_row=1, bad=(), retries=0)


class Scene:
    """A run of three samples whose loader gives `results`, at the end the last of them for ever.

    `answers` are those of probes by endpoint and key, None where there is none; `probed` are the keys in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *results: Any, **settings: Any) -> None:
        self.results = deque(results)
        self.answers: dict[tuple[EndpointKind, str], StorageError] = {}
        self.probed: list[str] = []
        self.emitted: list[events.Event] = []
        self.left = 40  # batches until the test gives up
        monkeypatch.setattr("ossconsole.training.loading.failover.BatchLoader", lambda *_, **__: self)
        monkeypatch.setattr("ossconsole.training.loading.failover._FIRST_PROBE_S", 0.001)
        monkeypatch.setattr(FailoverLoader, "_probe_object", lambda _, kind, key: self.probe(kind, key))
        self.not_pinned = None
        self.switch = SimpleNamespace(endpoint=EndpointKind.STANDARD)
        samples = tuple(Sample(f"train/a/{number}.u8", 0, 1, 1) for number in range(3))
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=1, classes=("a",), splits={"train": samples})
        anything: Any = None
        self.loader = FailoverLoader(
            RunContext("run", PROFILE, anything, TrainSettings(**settings), self.emitted.append),
            anything,
            TrainingData(manifest, "data"),
            anything,
            start=0,
            pin=False,
            time_singles=False,
            sharing=1,
            poll_stop=lambda: None,
            on_pause=lambda: None,
            on_recovery=lambda: None,
        )

    def next(self) -> Any:
        self.left -= 1
        assert self.left, "it never ends"
        found = self.results.popleft() if len(self.results) > 1 else self.results[0]
        if isinstance(found, Exception):
            raise found
        return found

    def retry(self, _batch: Any) -> None: ...

    def probe(self, kind: EndpointKind, key: str) -> StorageError | None:
        self.probed.append(key)
        return self.answers.get((kind, key))

    @property
    def switches(self) -> list[EndpointKind]:
        return [event.endpoint for event in self.emitted if isinstance(event, events.Switch)]


def test_a_batch_that_neither_endpoint_delivers_ends_the_run_after_one_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, batch(), batch("errno 5"), patience_s=0)
    assert scene.loader.next() is not None
    with pytest.raises(ConsoleError, match="errno 5"):
        scene.loader.next()
    assert scene.switches == [EndpointKind.ACCELERATED]


def test_each_failure_may_fall_back_again_once_a_batch_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [batch("errno 5"), batch("errno 5")]
    scene = Scene(monkeypatch, *failing, batch(), *failing, batch())
    for _ in range(2):
        assert scene.loader.next() is not None
    assert scene.switches == [EndpointKind.ACCELERATED, EndpointKind.STANDARD]


def test_the_object_that_failed_is_named_and_no_other_endpoint_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, batch("errno 1"), patience_s=0)
    scene.answers = {(kind, "data/train/a/1.u8"): ARCHIVED for kind in EndpointKind}
    with pytest.raises(ConsoleError, match="archived") as caught:
        scene.loader.next()
    assert caught.value.remedy == "Restore it."
    assert not scene.switches
    assert scene.probed[:2] == ["data/train/a/1.u8"] * 2


def test_a_run_does_not_wait_for_one_object_where_the_endpoint_delivers_others(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, batch(), batch("errno 1"), patience_s=3600)
    scene.answers = {(kind, "data/train/a/1.u8"): ARCHIVED for kind in EndpointKind}
    assert scene.loader.next() is not None
    with pytest.raises(ConsoleError, match=r"archived\. The endpoint delivers other objects"):
        scene.loader.next()


def test_a_run_waits_where_the_endpoint_refuses_every_object(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, batch(), batch("errno 1"), batch("errno 1"), batch(), patience_s=3600, fall_back=False)
    refused = {(EndpointKind.STANDARD, f"data/train/a/{row}.u8"): ARCHIVED for row in range(3)}
    scene.answers = refused
    scene.loader._on_pause = refused.clear  # the key is renewed meanwhile
    for _ in range(2):
        assert scene.loader.next() is not None
    assert "Endpoint recovered" in scene.emitted[-1].message  # type: ignore[union-attr]


def test_a_paused_run_that_nobody_watches_any_more_tries_again_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its console was closed, or its terminal was lost, in the night."""
    scene = Scene(monkeypatch, batch(), batch("errno 5"), patience_s=0)
    context = scene.loader._context
    context.interactive = True
    assert scene.loader.next() is not None
    paused: list[bool] = []

    def lose_terminal() -> None:
        paused.append(context.controls.paused)
        context.interactive = False
        assert not context.controls.paused

    scene.loader._on_pause = lose_terminal
    with pytest.raises(ConsoleError, match="errno 5"):
        scene.loader.next()
    assert paused == [True]
    context.controls.pause()  # that of a user
    context.interactive = False
    assert context.controls.paused


def test_what_has_recovered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = batch("errno 5")
    scene = Scene(monkeypatch, LoaderError("Reader process 0 ended."), batch(), failing, failing, batch())
    for _ in range(2):
        assert scene.loader.next() is not None
    told = [event.message for event in scene.emitted if isinstance(event, events.InfoEvent)]
    assert told == [
        "The batch was read after 0 s.",
        "Reading continues through the accelerated endpoint, after 0 s.",
    ]


@pytest.mark.parametrize("lost", [False, True])
def test_an_endpoint_whose_object_was_deleted_answers(monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    failure = LoaderError("Reader process 0 ended.") if lost else batch("errno 5")
    scene = Scene(monkeypatch, batch(), failure, failure, batch(), fall_back=False, patience_s=30)
    scene.answers[EndpointKind.STANDARD, "data/train/a/0.u8"] = NO_KEY  # the one that every wait probes
    if not lost:
        scene.answers[EndpointKind.STANDARD, "data/train/a/1.u8"] = UNREACHABLE
    for _ in range(2):
        assert scene.loader.next() is not None
    words = "The batch was read" if lost else "Endpoint recovered"
    assert words in scene.emitted[-1].message  # type: ignore[union-attr]
