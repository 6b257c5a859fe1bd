"""The benchmark through the real connector and a shaped sandbox: cold and warm readings, and the bottleneck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from ossconsole.cli import bench as cli
from ossconsole.cli.options import Target
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import object_key
from ossconsole.telemetry.host import CpuLimit, usable_cores
from ossconsole.training.bench.benchmark import Bench, BenchSettings
from ossconsole.training.bench.requests import BenchDataset, BenchRequests, next_batch
from ossconsole.training.bench.results import (
    BenchCase,
    BenchEvent,
    BenchSummary,
    CacheState,
    Limit,
    LimitKind,
    Mode,
    Reading,
    ReadPath,
    result_row,
)
from ossconsole.training.bench.saved import load
from ossconsole.training.compute.device import compute_threads
from ossconsole.training.loading.loader import SkippedSample
from tests.training.conftest import SIDE, TRAIN_SAMPLES, Bucket
from tests.training.test_readings import CELL, reading

SETTINGS = BenchSettings(workers=(1,), batch_sizes=(8,), seconds=0.1, rounds=2)


def test_every_arm_is_read_interleaved_cold_first_and_limits_follow(bucket: Bucket) -> None:
    found: list[BenchEvent] = []
    summary = Bench(bucket.profile, bucket.credentials, SETTINGS, found.append).run()
    assert found[-1] is summary
    readings = [event for event in found if isinstance(event, Reading)]
    loader = [event for event in readings if event.cell.mode is Mode.LOADER]
    warm = [event.endpoint for event in loader if event.temperature is CacheState.WARM]
    assert warm == [*EndpointKind, *reversed(EndpointKind)]  # ABBA
    assert loader[0].temperature is CacheState.COLD
    assert {event.wait_fraction is None for event in loader} == {True}
    training = [event for event in readings if event.cell.mode is Mode.TRAINING]
    assert all(event.wait_fraction is not None and 0 <= event.wait_fraction <= 1 for event in training)
    limits = Counter((event.kind, event.endpoint) for event in found if isinstance(event, Limit))
    alone = [(kind, each) for kind in (LimitKind.HTTP, LimitKind.CONNECTOR) for each in EndpointKind]
    assert limits == dict.fromkeys([*alone, (LimitKind.COMPUTE, None)], 2)
    assert set(summary.limits) == {*(f"{k} {e}" for k in ("http", "connector") for e in EndpointKind), "compute"}
    assert "simulated" in summary.headline
    assert "of the limit" in summary.bound
    assert summary.model is not None
    assert (summary.model.model, summary.model.batch_size, summary.model.precision) == ("resnet18", 8, "fp32")
    assert summary.model.image_size == SIDE
    decoded = msgspec.json.decode(msgspec.json.encode(summary))
    assert (decoded["event"], decoded["simulated"], len(decoded["rows"])) == ("summary", True, 2)


def test_the_options_of_the_command_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[BenchSettings] = []

    def fake(_profile: object, _credentials: object, settings: BenchSettings, _report: object) -> Any:
        given.append(settings)
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr("ossconsole.training.bench.benchmark.Bench", fake)
    arguments = "--dataset=d/ --model=resnet50 --precision=bf16 --compile --device=cuda --gpu=1 --image-size=96 --aa"
    context = cli.bench.make_context("bench", arguments.split(), resilient_parsing=True)
    opened: Any = SimpleNamespace(profile=SimpleNamespace(dataset_prefix="other"), credentials=None)
    cli._compare_endpoints(opened, context.params, lambda _event: None)
    expected = {"model": "resnet50", "precision": "bf16", "compile": True, "device": "cuda", "gpu": "1", "aa": True}
    found = msgspec.structs.asdict(given[0])
    assert {name: found[name] for name in expected} == expected
    assert (found["image_size"], found["datasets"]) == (96, ("d",))


def bench(bucket: Bucket, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command, with one short round of reading alone."""
    info, profile = bucket.sandbox.info, bucket.profile
    keys = {"OSS_ACCESS_KEY_ID": info.access_key_id, "OSS_ACCESS_KEY_SECRET": info.access_key_secret.reveal()}
    where = ("bucket", "region", "standard_endpoint", "accelerated_endpoint", "dataset_prefix")
    flags = [f"--{name.replace('_', '-')}={getattr(profile, name)}" for name in where]
    quick = ["--mode=loader", "--workers=1", "--batch-size=8", "--seconds=0.1", "--rounds=1", "--no-limits"]
    command = [sys.executable, "-m", "ossconsole", "bench", *flags, *quick, *arguments]
    return subprocess.run(command, env={**os.environ, **keys}, capture_output=True, timeout=240, check=True)


def test_the_command_prints_one_object_per_reading_and_ends_with_the_summary(bucket: Bucket) -> None:
    done = bench(bucket, "--json")
    lines = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines[:-1]] == ["reading"] * (len(lines) - 1)
    assert len(lines) >= 3
    summary = lines[-1]
    assert (summary["event"], summary["samples"]) == ("summary", 1_281_167)
    assert summary["rows"][0]["cell"]["workers"] == 1


@pytest.mark.parametrize(
    ("failed", "rows", "problem"),
    [("", 7, ""), ("", 0, r"train/a\.jpg: it cannot be decoded"), ("HTTP 503", 7, "HTTP 503")],
    ids=["some left", "none left", "failed"],
)
def test_samples_that_cannot_be_used_are_left_out(failed: str, rows: int, problem: str) -> None:
    skipped = SkippedSample(3, "train/a.jpg", "it cannot be decoded")
    batch: Any = SimpleNamespace(bad=(skipped,), failed=failed, rows=np.arange(rows))
    loader: Any = SimpleNamespace(next=lambda: batch)
    with pytest.raises(ConsoleError, match=problem) if problem else nullcontext():
        assert next_batch(loader) is batch


@pytest.mark.slow
def test_the_formats_are_compared_on_the_same_images_which_are_deleted(bucket: Bucket) -> None:
    before = [found.key for found in bucket.store().list_all(bucket.profile.dataset_prefix)]
    done = bench(bucket, "--json", "--formats=image-jpeg,image-u8,tensor-f32", "--endpoint=standard")
    summary = msgspec.json.decode(done.stdout.splitlines()[-1])
    found = {each["cell"]["format"]: each for each in summary["formats"] if each["temperature"] == "warm"}
    assert list(found) == ["image-jpeg", "image-u8", "tensor-f32"]
    sizes = {fmt: each["bytes_per_sample"] for fmt, each in found.items()}
    assert 100 < sizes["image-jpeg"] < 3 * SIDE * SIDE == sizes["image-u8"] == sizes["tensor-f32"] / 4
    assert found["image-jpeg"]["ratio"] is None
    assert all(found[fmt]["pairs"] == 1 and found[fmt]["ratio"] > 0 for fmt in ("image-u8", "tensor-f32"))
    assert found["image-jpeg"]["decode_share"] > 0 == found["tensor-f32"]["decode_share"]
    assert [key.key for key in bucket.store().list_all(bucket.profile.dataset_prefix)] == before
    said = done.stderr.decode()
    assert f"Uploading {TRAIN_SAMPLES} images as image-u8 at {SIDE} px" in said
    assert "objects below" in said


@pytest.mark.slow
def test_a_control_measures_one_endpoint_under_both_names(bucket: Bucket) -> None:
    settings = msgspec.structs.replace(
        SETTINGS, aa=True, rounds=6, modes=(Mode.LOADER,), limits=False, endpoints=(EndpointKind.ACCELERATED,)
    )
    found: list[BenchEvent] = []
    summary = Bench(bucket.profile, bucket.credentials, settings, found.append).run()
    assert summary.aa == "accelerated"
    assert {event.endpoint for event in found if isinstance(event, Reading)} == {
        ReadPath.STANDARD,
        ReadPath.ACCELERATED,
    }
    assert "A/A control, the accelerated endpoint under both names (simulated)" in summary.headline
    warm = summary.rows[0].comparison["warm"]
    assert warm.low is not None
    assert warm.high is not None
    assert summary.aa_passed == (warm.low <= 1 <= warm.high)
    assert warm.conditions is not None
    assert (warm.conditions.pairs, warm.conditions.workers, warm.conditions.stored_as) == (6, 1, "objects")
    assert warm.conditions.versions["osstorchconnector"]
    assert summary.ceiling is not None
    assert summary.ceiling.quota_gb == 50


def test_in_a_control_a_sample_read_under_one_name_counts_for_both(bucket: Bucket) -> None:
    data = BenchDataset(bucket.data, one_endpoint=True)
    first = next(BenchRequests(data, EndpointKind.STANDARD, 8).requests()).indices
    second = next(BenchRequests(data, EndpointKind.ACCELERATED, 8).requests()).indices
    assert not set(first) & set(second)


def test_a_visit_requests_new_samples_until_it_is_to_be_warm(bucket: Bucket) -> None:
    data = BenchDataset(bucket.data)
    first = BenchRequests(data, EndpointKind.STANDARD, 8)
    requests = first.requests()
    cold = [next(requests).indices for _ in range(3)]
    first.temperature = CacheState.WARM
    warm = [next(requests).indices for _ in range(3)]
    np.testing.assert_array_equal(np.concatenate(cold), np.concatenate(warm))
    again = BenchRequests(data, EndpointKind.STANDARD, 8).requests()
    assert not set(next(again).indices) & set(np.concatenate(cold))
    other = BenchRequests(data, EndpointKind.ACCELERATED, 8).requests()
    np.testing.assert_array_equal(next(other).indices, cold[0])  # both endpoints are measured on the same samples


def test_a_dataset_smaller_than_a_batch_is_read_over_and_over(bucket: Bucket) -> None:
    requests = BenchRequests(BenchDataset(bucket.data), EndpointKind.STANDARD, 2 * TRAIN_SAMPLES).requests()
    assert set(next(requests).indices) == set(range(TRAIN_SAMPLES))


def test_a_missing_sample_ends_the_benchmark_with_a_remedy(bucket: Bucket) -> None:
    for sample in bucket.manifest.splits["train"]:
        bucket.store().delete(object_key(bucket.profile.dataset_prefix, sample.key))
    with pytest.raises(ConsoleError, match=r"Through the standard endpoint: .*not in the bucket") as caught:
        Bench(bucket.profile, bucket.credentials, SETTINGS).run()
    assert "doctor" in caught.value.remedy


@pytest.mark.parametrize(
    "failure", [ConsoleError("The endpoint failed."), KeyboardInterrupt()], ids=["error", "Ctrl-C"]
)
def test_what_was_measured_before_a_failure_is_reported(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def visit(bench: Any, cell: BenchCase, path: ReadPath, number: int) -> None:
        if number == fails:  # of the loop below
            raise failure
        bench._readings.append(msgspec.structs.replace(reading(EndpointKind(path), 100.0, number), cell=cell))

    monkeypatch.setattr(Bench, "_visit", visit)
    settings = msgspec.structs.replace(SETTINGS, limits=False)
    for fails, reported in ((0, []), (1, [BenchSummary])):  # noqa: B007 - read by `visit`
        found: list[BenchEvent] = []
        with pytest.raises(type(failure)):
            Bench(bucket.profile, bucket.credentials, settings, found.append).run()
        assert [type(event) for event in found] == reported


def test_the_command_saves_what_was_measured_before_ctrl_c(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_context: object, _opened: object, _options: object, report: Any) -> int:
        report(summary)
        raise KeyboardInterrupt

    rows = (result_row(CELL, [reading(EndpointKind.STANDARD, 100.0, 0)], 1000),)
    summary = BenchSummary(time=0.0, simulated=True, samples=1000, rows=rows, limits={}, headline="Early.", bound="")
    monkeypatch.setattr(cli, "_measure", interrupted)
    monkeypatch.setattr(Target, "open", lambda _target: nullcontext(bucket))
    context = cli.bench.make_context("bench", ["--save", "early"])
    with pytest.raises(KeyboardInterrupt):
        cli.bench.invoke(context)
    assert "Early." in capsys.readouterr().out
    assert load("early").summary == summary


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, 1, 1), (2, 2, 1), (1, 4, 3), (4, 4, 3), (4, 16, 12), (2, 16, 14)]
)
def test_a_few_cores_are_left_to_the_readers(workers: int, cores: int, threads: int) -> None:
    assert compute_threads(workers, cores) == threads


@pytest.mark.parametrize(("cores", "most"), [(1.0, 1), (0.5, 1), (4096.0, 4096)])
def test_the_containers_limit_bounds_the_cores(cores: float, most: int) -> None:
    assert 1 <= usable_cores(CpuLimit(cores, seconds=lambda: None)) <= most


def test_a_case_takes_part_until_its_ratio_is_decided(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    visited: Counter[int] = Counter()

    def visit(bench: Any, cell: BenchCase, path: ReadPath, number: int) -> None:
        visited[cell.batch_size] += 1
        slower = 3.0 if path is ReadPath.STANDARD else 1.0
        noise = 1.02 if cell.batch_size == 8 else 30.0
        rate = 300 / slower * (noise if number % 2 else 1.0) ** (1 if path is ReadPath.STANDARD else -1)
        bench._readings.append(msgspec.structs.replace(reading(EndpointKind(path), rate, number), cell=cell))

    monkeypatch.setattr(Bench, "_visit", visit)
    settings = msgspec.structs.replace(
        SETTINGS, batch_sizes=(8, 4), modes=(Mode.LOADER,), rounds=13, until_decided=True, limits=False
    )
    summary = Bench(bucket.profile, bucket.credentials, settings).run()
    assert visited == {8: 2 * 6, 4: 2 * 13}
    assert "1 setup of 2 decided" in summary.headline
