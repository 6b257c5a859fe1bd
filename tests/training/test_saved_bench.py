"""Saved benchmarks: what is in them, how two are compared, and their report."""

from __future__ import annotations

import math
import random
import stat

import msgspec
import numpy as np
import pytest
import torch

from ossconsole.cli.bench_tables import print_emulation
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import SettingsError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry.compare import Conditions
from ossconsole.telemetry.events import ModelCeiling
from ossconsole.telemetry.page import to_html, to_markdown
from ossconsole.training.bench.ceiling import saved_ceiling, setup_of
from ossconsole.training.bench.checkpoints import CheckpointReading, CheckpointSummary
from ossconsole.training.bench.conclusions import headline
from ossconsole.training.bench.difference import Verdict, differences, t_share
from ossconsole.training.bench.emulation import EmulationSummary, path_result
from ossconsole.training.bench.report import bench_page
from ossconsole.training.bench.results import BenchSummary, CacheState, CaseSteps, Mode, Spread, result_row
from ossconsole.training.bench.saved import (
    Provenance,
    SavedBench,
    check_new,
    compare,
    load,
    save,
    saved_benches,
    without_secrets,
)
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.settings import TrainSettings
from tests.training.test_emulation import H100, trial
from tests.training.test_readings import ACCELERATED, CELL, STANDARD, reading

WARM = CacheState.WARM


def bench(name: str, factor: float = 1.0, **provenance: object) -> SavedBench:
    readings = [
        reading(kind, factor * rate * (1 + 0.01 * (number % 3)), number)
        for number in range(6)
        for kind, rate in ((STANDARD, 100.0), (ACCELERATED, 250.0))
    ]
    summary = BenchSummary(
        time=0.0,
        simulated=True,
        samples=1000,
        rows=(result_row(CELL, readings, 1000),),
        limits={},
        headline="Training is faster.",
        bound="The connector bounds it.",
    )
    known = Provenance(kernel="6.1", **provenance)  # type: ignore[arg-type]
    return SavedBench(name=name, saved=1_700_000_000.0, provenance=known, summary=summary, readings=tuple(readings))


def test_what_an_endpoint_gave_is_that_of_reading_alone() -> None:
    alone = msgspec.structs.replace(CELL, mode=Mode.LOADER)
    few = msgspec.structs.replace(alone, workers=1)
    taken = [
        reading(ACCELERATED, 25.0, 0),  # with training: the model was slow
        msgspec.structs.replace(reading(ACCELERATED, 100.0, 0, CacheState.COLD), cell=alone),
        *(msgspec.structs.replace(reading(ACCELERATED, rate, 0), cell=alone) for rate in (900.0, 1000.0, 2000.0)),
        msgspec.structs.replace(reading(ACCELERATED, 600.0, 0), cell=few),
        msgspec.structs.replace(reading(STANDARD, 90.0, 0, CacheState.COLD), cell=alone),
    ]
    saved = msgspec.structs.replace(bench("both"), readings=tuple(taken))
    assert saved.delivered() == {"accelerated": 1000.0, "standard": 90.0}
    assert bench("training alone").delivered() == {}


def test_the_conditions_on_the_page_are_those_of_its_headline() -> None:
    saved = bench("both")
    assert isinstance(saved.summary, BenchSummary)
    loading = msgspec.structs.replace(CELL, mode=Mode.LOADER)
    rows = [
        result_row(
            cell,
            [msgspec.structs.replace(each, cell=cell) for each in saved.readings],
            1000,
            CaseSteps(conditions=Conditions(sample_format=f"{cell.mode}-format")),
        )
        for cell in (loading, CELL)
    ]
    summary = msgspec.structs.replace(saved.summary, rows=tuple(rows), headline=headline(rows, simulated=True))
    page = bench_page(msgspec.structs.replace(saved, summary=summary))
    assert page.headline.startswith("Training through")
    assert "training-format" in page.conditions[0]


def test_students_t_as_in_the_tables() -> None:
    for freedom, value in ((1, 12.706), (5, 2.5706), (10, 2.2281), (30, 2.0423), (400, 1.9659)):
        shares = t_share(np.array([-value, value]), np.array([freedom, freedom]))
        assert shares == pytest.approx([0.025, 0.975], abs=1e-5)


def simulated_bench(
    chance: random.Random, spread: float, alike: float, rows: int, rounds: int
) -> dict[str, list[float]]:
    """Readings of that many setups; the correlation of neighbours is `alike`, that of their logarithms."""

    def series() -> list[float]:
        error, values = chance.gauss(0, 1), []
        for _ in range(rounds):
            error = alike * error + math.sqrt(1 - alike**2) * chance.gauss(0, 1)
            values.append(1000 * math.exp(spread * error))
        return values

    return {str(row): series() for row in range(rows)}


def shows_no_difference(spread: float, alike: float, rows: int, rounds: int, *, benches: int) -> float:
    """The share of pairs of simulated benchmarks of one endpoint that show none."""
    chance, same = random.Random(2), 0
    for _ in range(benches):
        sides = (simulated_bench(chance, spread, alike, rows, rounds) for _ in range(2))
        same += all(each.verdict.startswith("no difference") for each in differences(*sides))
    return same / benches


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.5])
def test_two_benchmarks_of_one_endpoint_show_no_difference(alike: float) -> None:
    assert shows_no_difference(0.1, alike, rows=4, rounds=6, benches=150) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(("rows", "rounds"), [(4, 6), (1, 6), (1, 3), (2, 13), (1, 20)])
def test_as_many_as_stated_show_no_difference(rows: int, rounds: int, alike: float) -> None:
    assert shows_no_difference(0.1, alike, rows, rounds, benches=1000) >= 0.93


@pytest.mark.parametrize(
    ("alike", "wanted"), [(0.0, 0.95), (0.3, 0.95), pytest.param(0.5, 0.9, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("spread", "rounds"), [(0.03, 6), (0.05, 13)], ids=["quiet", "many"])
def test_a_difference_of_20_percent_is_found(spread: float, rounds: int, alike: float, wanted: float) -> None:
    chance = random.Random(2)
    found: list[Verdict] = []
    for _ in range(60):
        first, second = (simulated_bench(chance, spread, alike, 4, rounds) for _ in range(2))
        faster = {what: [1.2 * rate for rate in rates] for what, rates in second.items()}
        found += [each.verdict for each in differences(first, faster)]
    assert found.count(Verdict.FASTER) / len(found) >= wanted


def test_a_wide_interval_is_not_called_equal() -> None:
    level = [100.0, 101.0, 99.0, 100.0, 100.5, 99.5]
    assert differences({"x": level}, {"x": level})[0].verdict is Verdict.SAME
    scattered = [50.0, 200.0, 80.0, 120.0, 60.0, 180.0]
    assert differences({"x": level}, {"x": scattered})[0].verdict is Verdict.NOT_SHOWN


def test_a_real_difference_is_found() -> None:
    found = compare(bench("a"), bench("b", 1.2)).differences
    assert {each.verdict for each in found} == {Verdict.FASTER}
    assert all(each.low is not None and each.low > 1.1 for each in found)
    assert {each.verdict for each in compare(bench("b", 1.2), bench("a")).differences} == {Verdict.SLOWER}
    assert {each.verdict for each in compare(bench("a"), bench("a")).differences} == {Verdict.SAME}
    assert differences({"x": [1.0, 1.0]}, {"x": [2.0, 2.0]})[0].verdict is Verdict.TOO_FEW
    assert not differences({"stalled": [], "x": [1.0]}, {"stalled": [1.0], "x": []})


def test_each_setup_of_a_sweep_is_compared_alone() -> None:
    cells = [CELL, *(msgspec.structs.replace(CELL, **{name: value}) for name, value in DIFFERENT.items())]
    found = msgspec.structs.replace(
        bench("a"),
        readings=tuple(
            msgspec.structs.replace(reading(STANDARD, 100.0 + number, 0), cell=cell)
            for number, cell in enumerate(cells)
        ),
    )
    assert [len(rates) for rates in found.rates().values()] == [1] * len(cells)


DIFFERENT = {"workers": 7, "batch_size": 7, "prefetch_mb": 64, "format": "tensor-f32", "dataset": "other"}


def test_what_else_differs_is_named() -> None:
    found = compare(bench("a", endpoints={"standard": "one"}), bench("b", endpoints={"standard": "two"}, cores=4))
    assert found.changed == {"endpoints standard": ("one", "two"), "cores": ("0", "4")}


def test_a_saved_benchmark_is_private_and_read_back() -> None:
    check_new("first")
    path = save(bench("first"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load("first") == bench("first")
    with pytest.raises(SettingsError, match="already saved"):
        check_new("first")
    path.with_name("broken.json").write_text("{")
    assert [each.name for each in saved_benches()] == ["first"]
    for name, problem in (("missing", "no saved"), ("broken", "not a saved"), ("../first", "not a name")):
        with pytest.raises(SettingsError, match=problem):
            load(name)


def test_benchmarks_that_measured_nothing_alike_are_refused() -> None:
    other = msgspec.structs.replace(bench("b"), readings=())
    with pytest.raises(SettingsError, match="nothing alike"):
        compare(bench("a"), other)


def test_a_command_line_is_saved_without_secrets() -> None:
    key = Credentials("LTAI5tExampleKeyId", Secret("very-secret"), Secret("a-token"))
    typed = ["bench", "--bucket", "x", "very-secret", "a-token", "LTAI5tAnotherKeyId", "http://me:pass@host/"]
    text = without_secrets(typed, key)
    for secret in ("LTAI", "very-secret", "a-token", "pass"):
        assert secret not in text
    assert "--bucket x" in text


def emulated() -> SavedBench:
    trials = (trial(1, 0.99), trial(2, 0.8))
    summary = EmulationSummary(
        time=0.0,
        workload=H100,
        dataset="data",
        format="image-u8",
        stored_as="objects",
        bytes_per_sample=150_528.0,
        workers=2,
        simulated=False,
        paths=(path_result("accelerated", trials, {1: 0.999, 2: 0.999}, H100),),
        unmet_rules=("Each accelerator did 100 steps; the rules require 500.",),
    )
    return SavedBench(name="emu", saved=0.0, provenance=Provenance(), summary=summary, trials=trials)


def test_the_table_of_an_emulation_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    trials = (*(emulated().trials), msgspec.structs.replace(trial(2, 0.7), temperature=CacheState.COLD))
    found = path_result("accelerated", trials, {1: 0.999, 2: 0.999}, H100)
    summary = emulated().summary
    assert isinstance(summary, EmulationSummary)
    print_emulation(msgspec.structs.replace(summary, paths=(found,)))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "70.0 %" in shown


def checkpoints() -> SavedBench:
    taken = CheckpointReading(time=0.0, simulated=False, what="write standard", round=0, bytes=10**8, seconds=2.0)
    seconds = {"write standard": Spread(2.0, 2.0, 2.0, 1)}
    summary = CheckpointSummary(time=0.0, simulated=False, bytes=10**8, seconds=seconds)
    return SavedBench(name="ck", saved=0.0, provenance=Provenance(), summary=summary, checkpoints=(taken,))


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (bench("one", command="ossconsole bench"), ("Training is faster.", "Linux 6.1", "250.0", "simulated storage")),
        (emulated(), ("accelerated endpoint 1", "80.0 %", "not an MLPerf result", "the rules require 500")),
        (checkpoints(), ("write standard 50 MB/s",)),
    ],
    ids=["endpoints", "emulation", "checkpoints"],
)
def test_the_report_of_a_benchmark(saved: SavedBench, words: tuple[str, ...]) -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(saved), type=SavedBench)
    page = bench_page(decoded)
    for text in (to_html(page), to_markdown(page).replace("\\", "")):
        for word in words:
            assert word in text


def test_the_newest_benchmark_of_the_same_setup_gives_the_ceiling_of_a_run() -> None:
    settings = TrainSettings(batch_size=8)
    rows = SampleTransform(SampleFormat.IMAGE_U8, 64, 64, augment=False, seed=0)
    compute = DeviceContext(settings, rows, device=torch.device("cpu"))
    assert saved_ceiling(settings, compute, 64, RankInfo()) is None
    for name, saved, rate, size in (("old", 1.0, 90.0, 64), ("new", 2.0, 100.0, 64), ("other", 3.0, 50.0, 96)):
        found = bench(name)
        summary = msgspec.structs.replace(
            found.summary, limits={"compute": Spread(rate, rate, rate, 2)}, model=setup_of(settings, compute, size)
        )
        save(msgspec.structs.replace(found, saved=saved, summary=summary))
    save(msgspec.structs.replace(bench("without"), saved=4.0))
    known = saved_ceiling(settings, compute, 64, RankInfo())
    assert known == ModelCeiling(bench="new", samples_per_s=100.0)
    two = saved_ceiling(settings, compute, 64, RankInfo(world=2, local_world=2))
    assert two == ModelCeiling(bench="new", samples_per_s=200.0), "of all processes"
    assert saved_ceiling(settings, compute, 64, RankInfo(rank=1, local_rank=1, world=2, local_world=2)) is None
    for changed in ({"batch_size": 16}, {"model": "resnet50"}, {"freeze": "backbone", "weights": "imagenet"}):
        other = msgspec.structs.replace(settings, **changed)
        assert saved_ceiling(other, compute, 64, RankInfo()) is None, changed
