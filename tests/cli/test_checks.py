"""Each of the doctor's checks of machine and set-up: once well, once failing for the real reason."""

from __future__ import annotations

import os
import re
import resource
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from ossconsole.cli import checks, doctor
from ossconsole.cli.checks import settings_check
from ossconsole.config.checks import CheckStatus, run_checks
from ossconsole.config.connector import connector_config_path
from ossconsole.config.credential_sources import FixedSource, find_credentials, write_connector_file
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import internal_endpoint
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, write_manifest
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry.gpu import Driver
from ossconsole.telemetry.samples import GpuSample, GpuSnapshot
from ossconsole.training.preflight import TorchReport
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import settings_for, upload
from tests.sandboxed import Sandboxed

OK, WARN, FAIL = CheckStatus.OK, CheckStatus.WARN, CheckStatus.FAIL
SIZE = os.terminal_size((120, 40))
DRIVER = Driver("550.54", (12, 4))
TORCH = TorchReport(torch="2.6.0", torchvision="0.21.0", connector="1.2.3", cuda_built="12.4")


def test_python() -> None:
    assert checks.python_check().status is OK
    assert checks.python_check((3, 9)).status is FAIL
    assert checks.python_check((3, 14)).remedy


def test_glibc() -> None:
    assert checks.glibc_check().status is OK
    assert checks.glibc_check("glibc 2.12").status is FAIL
    assert checks.glibc_check("").status is FAIL
    assert checks.glibc_check(machine="aarch64").status is FAIL


@pytest.mark.parametrize(
    ("number", "words"), [(323, "Available|Not available .EPERM."), (9999, "Not available .ENOSYS.")]
)
def test_userfaultfd_reports_the_kernels_answer(number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_USERFAULTFD", number)
    check = checks.userfaultfd_check()
    assert re.match(words, check.detail)
    assert check.status is (OK if check.detail == "Available." else WARN)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_shared_memory_matters_to_several_gpus_only(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "NCCL_BYTES", 1 << 60)  # readers' buffers are no part of it, however little there is
    samples = [gpu_of(0, 16_000_000_000).gpus[0]] * count
    snapshot = GpuSnapshot(tuple(samples))
    found = {check.name: check for check in checks.gpu_checks(snapshot)}
    assert ("shared memory" in found) == (count > 1)
    assert all(check.status is WARN and "shm-size" in check.remedy for check in [found.get("shared memory")] if check)


def test_shared_memory_that_is_not_there(tmp_path: Path) -> None:
    assert checks.nccl_memory_check(tmp_path / "none").status is WARN
    assert checks.nccl_memory_check(tmp_path).status in {OK, WARN}


def test_open_files_under_a_real_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        statuses = []
        for limit in (min(hard, 65536), 1024, 256):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            statuses.append(checks.open_files_check())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [check.status for check in statuses] == [OK, WARN, FAIL]
    assert statuses[2].remedy == f"ulimit -n {hard}"


def test_disk(tmp_path: Path) -> None:
    assert checks.disk_check(tmp_path, few_bytes=1, too_few_bytes=1).status is OK
    assert checks.disk_check(tmp_path, few_bytes=1 << 60, too_few_bytes=1).status is WARN
    assert checks.disk_check(tmp_path, few_bytes=1 << 60, too_few_bytes=1 << 60).status is FAIL


def gpu_of(used: int, total: int | None, problem: str = "") -> GpuSnapshot:
    return GpuSnapshot((GpuSample(index=0, name="T4", memory_used=used, memory_total=total, problem=problem),))


@pytest.mark.parametrize(
    ("snapshot", "statuses", "words"),
    [
        (gpu_of(1_000_000_000, 16_000_000_000), [OK, OK], "15.0 GB free"),
        (gpu_of(15_500_000_000, 16_000_000_000), [OK, FAIL], "too little"),
        (gpu_of(0, None, "This GPU fell off the bus."), [WARN, WARN], "no metrics"),
        (GpuSnapshot(problem="No NVIDIA driver."), [WARN, WARN], "CPU"),
    ],
)
def test_gpus(snapshot: GpuSnapshot, statuses: list[CheckStatus], words: str) -> None:
    found = checks.gpu_checks(snapshot)
    assert [check.status for check in found] == statuses
    assert words in found[1].detail


@pytest.mark.parametrize(
    ("change", "driver", "status", "words"),
    [
        ({"cuda_available": True, "devices": ("T4",)}, DRIVER, OK, "T4"),
        ({}, None, WARN, "no NVIDIA driver"),
        ({"cuda_built": ""}, DRIVER, FAIL, "without CUDA"),
        ({"cuda_built": "13.2"}, DRIVER, FAIL, "up to CUDA 12.4"),
        ({}, DRIVER, FAIL, "no usable GPU"),
    ],
)
def test_cuda_against_the_driver(
    change: dict[str, object], driver: Driver | None, status: CheckStatus, words: str
) -> None:
    check = checks.torch_results(msgspec.structs.replace(TORCH, **change), driver)[1]
    assert check.status is status
    assert words in check.detail
    assert check.remedy or status is not FAIL


def test_libraries_that_do_not_fit_together() -> None:
    torch = checks.torch_results(msgspec.structs.replace(TORCH, problem="RuntimeError: torchvision::nms"), DRIVER)[0]
    assert torch.status is FAIL
    assert "torchvision::nms" in torch.detail
    assert "pip install" in torch.remedy


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", FAIL, "libcudart.so.13"),
        ("import os, sys; sys.stderr.write('Illegal instruction'); os._exit(132)", FAIL, "Illegal instruction"),
        ("import time; time.sleep(60)", WARN, "not imported"),
    ],
)
def test_torch_that_does_not_load(
    code: str, status: CheckStatus, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limit_s = 1.0 if status is WARN else 20.0
    check = checks.torch_checks(limit_s)[0]
    assert check.status is status
    assert words in check.detail


def test_torch_loads_here() -> None:
    torch, cuda = checks.torch_checks(60.0)
    assert torch.status is OK, torch.detail
    assert cuda.name == "cuda"


@pytest.mark.parametrize(
    ("environ", "size", "status", "words"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, SIZE, OK, "16 million"),
        ({"TERM": "xterm-256color"}, SIZE, OK, "256 colours"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, SIZE, OK, "NO_COLOR"),
        ({"TERM": "dumb"}, SIZE, WARN, "cannot move its cursor"),
        ({"TERM": "xterm"}, os.terminal_size((79, 40)), WARN, "80x24"),
        ({"TERM": "xterm"}, os.terminal_size((120, 23)), WARN, "80x24"),
        ({"TERM": "xterm"}, os.terminal_size((59, 40)), WARN, "needs 60x18"),
    ],
)
def test_terminal(environ: dict[str, str], size: os.terminal_size, status: CheckStatus, words: str) -> None:
    check = checks.terminal_check(environ, size)
    assert check.status is status
    assert words in check.detail


@pytest.mark.parametrize(("answer", "status"), [("external", OK), ("off", WARN)])
def test_tmux_clipboard(answer: str, status: CheckStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmux = tmp_path / "tmux"
    tmux.write_text(f"#!/bin/sh\necho {answer}\n")
    tmux.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = checks.terminal_check({"TERM": "tmux-256color", "TMUX": "/tmp/tmux"}, SIZE)
    assert check.status is status
    assert ("set-clipboard on" in check.remedy) is (status is WARN)


def test_connector_config() -> None:
    assert checks.connector_config_check().status is OK
    connector_config_path().write_text('{"logLevl": 1}')
    with pytest.raises(ConsoleError, match="logLevl"):
        checks.connector_config_check()


def pair(left: timedelta | None) -> FixedSource:
    end = None if left is None else datetime.now(timezone.utc) + left
    return FixedSource(Credentials("LTAI5tExampleKeyId", Secret("s"), expiration=end, source="test"))


@pytest.mark.parametrize(
    ("left", "status", "words"),
    [
        (None, OK, "LTAI…eyId from test, without expiry"),
        (timedelta(hours=5, seconds=30), OK, "expires in 5 h 0 min"),
        (timedelta(minutes=20, seconds=30), WARN, "expires in 0 h 20 min"),
        (timedelta(seconds=-1), FAIL, "expired at"),
    ],
)
def test_credentials_and_their_end(left: timedelta | None, status: CheckStatus, words: str) -> None:
    check = checks.credentials_check(pair(left))
    assert check.status is status
    assert words in check.detail


def test_a_token_of_unknown_expiry_is_not_called_one_without_expiry() -> None:
    key = Credentials("STS.ExampleKeyId", Secret("s"), Secret("t"), source="aliyun CLI work")
    assert "from aliyun CLI work, expiry unknown." in checks.credentials_check(FixedSource(key)).detail


def test_credentials_that_others_may_read(sandboxed_bucket: Sandboxed) -> None:
    path = write_connector_file(Credentials("a" * 12, Secret("s")))
    profile = sandboxed_bucket.profile("x")
    assert checks.credentials_check(find_credentials(profile)).status is OK
    path.chmod(0o644)
    check = checks.credentials_check(find_credentials(profile))
    assert check.status is WARN
    assert check.remedy == f"chmod 600 {path}"


def test_the_dataset(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> None:
    profile = sandboxed_bucket.profile(request.node.name)
    store = sandboxed_bucket.store()
    store.profile = profile
    empty, size = checks.dataset_check(store)
    assert (empty.status, size) == (WARN, None)
    assert "ossconsole upload" in empty.remedy
    sample = Sample("train/a/1.u8", 0, 64, 64)
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=64, classes=("a",), splits={"train": (sample,)})
    write_manifest(store, profile.dataset_prefix, manifest)
    found, size = checks.dataset_check(store)
    assert (found.status, size) == (OK, 3 * 64 * 64)
    assert "1 train in 1 class, image-u8 at 64 px" in found.detail
    assert "no validation samples" in found.detail
    store.put(f"{profile.dataset_prefix}/manifest.json", b"{")
    assert checks.dataset_check(store)[0].status is FAIL


def test_a_dataset_of_shards(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    profile = sandboxed_bucket.profile(request.node.name)
    upload(profile, sandboxed_bucket.owner, settings_for(make_pictures(tmp_path), per_shard=5))
    store = sandboxed_bucket.store()
    store.profile = profile
    found, size = checks.dataset_check(store)
    assert (found.status, size) == (OK, 8 * 768)
    assert "6 train, 2 val in 2 classes" in found.detail
    assert "tar shards" in found.detail


def test_a_dataset_without_a_manifest(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> None:
    profile = sandboxed_bucket.profile(request.node.name)
    store = sandboxed_bucket.store()
    store.profile = profile
    for key in ("train/ants/a.pt", "val/ants/b.pt", "val/c.pt"):
        store.put(f"{profile.dataset_prefix}/{key}", bytes(3 * 4 * 8 * 8))
    found, size = checks.dataset_check(store)
    assert (found.status, size) == (WARN, 2 * 768)
    assert "1 train, 1 val in 1 class" in found.detail
    assert "ILSVRC2012_val_labels.json" in found.detail
    assert "val/c.pt" in found.detail
    assert "--plain" in found.remedy


def test_a_prefix_of_images(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> None:
    profile = sandboxed_bucket.profile(request.node.name)
    store = sandboxed_bucket.store()
    store.profile = profile
    for number in range(20):
        store.put(f"{profile.dataset_prefix}/train/{'ab'[number % 2]}/{number}.jpg", b"123")
    store.put(f"{profile.dataset_prefix}/train/a/.DS_Store", b"123")
    found, size = checks.dataset_check(store)
    assert (found.status, size) == (OK, 20 * 3)
    assert "18 train, 2 val in 2 classes, image-jpeg of various sizes" in found.detail
    assert "Listed 20 train images" in found.detail
    assert "10 % of the training images (2) are held out for validation." in found.detail
    assert "1 object (a hidden file): train/a/.DS_Store" in found.detail


def test_a_slow_listing_is_cut_off(
    sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = sandboxed_bucket.profile(request.node.name)
    store = sandboxed_bucket.store()
    store.profile = profile
    store.put(f"{profile.dataset_prefix}/train/ants/a.pt", bytes(3 * 4 * 8 * 8))
    over = threading.Event()
    list_page = store.list_page
    monkeypatch.setattr(store, "list_page", lambda *args, **options: over.wait(60) and list_page(*args, **options))
    monkeypatch.setattr(checks, "LISTING_LIMIT_S", 0.05)
    found, _ = checks.dataset_check(store)
    over.set()
    assert f"ossconsole manifest --dataset-prefix {profile.dataset_prefix}" in found.remedy
    assert found.status is WARN
    assert "every run" in found.detail


def test_the_dataset_of_a_refused_key(sandboxed_bucket: Sandboxed) -> None:
    store = sandboxed_bucket.store(key="expired")
    with pytest.raises(StorageError, match="SecurityTokenExpired"):
        checks.dataset_check(store)


def test_doctor_waits_for_torch_longer_than_for_the_other_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(1); raise ImportError('a slow disk')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "LIMIT_S", 0.2)
    (job,) = [job for job in doctor.machine_jobs(None) if "torch" in job.names]
    ((torch, _),) = run_checks([job])
    assert "a slow disk" in torch.detail


def test_an_endpoint_that_cannot_be_right_fails_the_check_of_the_settings() -> None:
    profile = Profile(name="a", region="cn-hangzhou", bucket="abc", standard_endpoint=internal_endpoint("cn-hangzhou"))
    assert settings_check(profile).status is CheckStatus.OK
    for endpoint, words in (
        (profile.standard_endpoint, "caches nothing"),
        ("https://cn-shanghai-g-internal.oss-data-acc.aliyuncs.com", "is in cn-shanghai"),
    ):
        found = settings_check(msgspec.structs.replace(profile, accelerated_endpoint=endpoint))
        assert found.status is CheckStatus.FAIL
        assert words in found.detail
