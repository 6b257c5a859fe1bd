"""Runs what other clients of OSS test and do against the sandbox, and prints passed and failed for each.

    python -m tests.contract.peers --oss2 FOLDER     the test modules of oss2's source distribution, unpacked in FOLDER
    python -m tests.contract.peers --sdk2            a round of calls through alibabacloud-oss-v2
    python -m tests.contract.peers --connector       the examples of osstorchconnector's README
    python -m tests.contract.peers --ali-oss FOLDER  a round of calls through ali-oss, in FOLDER/node_modules

`pip download --no-deps --no-binary :all: oss2==2.19.1` has the first, without the pictures that six tests read; its
tests need `mock` and `pycryptodome`. `npm install ali-oss` in an empty FOLDER has the last. Nothing of theirs is part
of this project. Two changes to oss2's tests, both for want of a network: no live channels at the cleaning up, and a
local RSA key in place of the key management service.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ossconsole.cli.output import say
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess

_REGION = "cn-hangzhou"
_MODULE_NAMES = """
    test_object test_download test_upload test_multipart test_list_objects_v2 test_iterator test_chinese test_bucket
    test_bucket_versioning test_object_versioning test_bucket_worm test_bucket_style test_request_payment
    test_traffic_limit test_server_side_encryotion test_sign test_crypto_object test_crypto_multipart test_headers
    test_put_object_chunked test_crc64_combine test_utils test_exception_ec test_api_base
"""
_MODULE_TIMEOUT_S = 240  # seconds
_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")
_OSS2_BOOT = """
import sys, oss2, pytest
from Crypto.PublicKey import RSA
key = RSA.generate(1024)
pair = {"private_key": key.export_key(), "public_key": key.publickey().export_key()}
oss2.LiveChannelIterator = lambda *_, **__: iter(())
oss2.AliKMSProvider = lambda *_, **__: oss2.RsaProvider(pair)
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_oss2(folder: Path, info: SandboxInfo, auth: str, modules: list[str]) -> None:
    """One pytest process for each module, so that one that hangs ends alone."""
    environment = {
        **os.environ,
        "OSS_TEST_ACCESS_KEY_ID": info.access_key_id,
        "OSS_TEST_ACCESS_KEY_SECRET": info.access_key_secret.reveal(),
        "OSS_TEST_ENDPOINT": info.path_style_endpoint,
        "OSS_TEST_REGION": _REGION,
        "OSS_TEST_AUTH_VERSION": auth,
        "OSS_TEST_BUCKET": "peer",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    for module in modules:
        options = [
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-o",
            "addopts=",
            f"tests/{module}.py",
        ]
        command = [sys.executable, "-c", _OSS2_BOOT, *options]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_MODULE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            say(f"oss2 {auth} {module}: longer than {_MODULE_TIMEOUT_S} s")
            continue
        lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
        counts = {word: int(number) for number, word in _COUNT.findall(lines[-1])}
        say(f"oss2 {auth} {module}: {counts.get('passed', 0)} passed, {counts.get('failed', 0)} failed")
        for line in lines:
            if line.startswith("FAILED"):
                say(f"    {line[7:160]}")


def run_ali_oss(folder: Path, info: SandboxInfo, auth: str, work: Path) -> None:
    """The calls in ali_oss_calls.js, by Node."""
    environment = {
        **os.environ,
        "OSS_ACCESS_KEY_ID": info.access_key_id,
        "OSS_ACCESS_KEY_SECRET": info.access_key_secret.reveal(),
        "OSS_ENDPOINT": info.path_style_endpoint.replace("127.0.0.1", "localhost"),
        "OSS_REGION": _REGION,
        "OSS_AUTH": auth,
        "OSS_BUCKET": f"peer-ali-oss-{auth}",
        "OSS_FOLDER": str(work),
    }
    command = ["node", str(Path(__file__).with_name("ali_oss_calls.js")), str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=_MODULE_TIMEOUT_S
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [f"    {result['name']}: {result['error'][:160]!r}" for result in results if result["error"]]
    heading = f"ali-oss {auth}: {len(results) - len(failures)} passed, {len(failures)} failed"
    for line in (heading, *failures, *([done.stderr[-500:]] if done.returncode else [])):
        say(line)


def run_checks(name: str, checks: dict[str, Callable[[], Any]]) -> None:
    """Calls each check; an exception is a failure."""
    passed, failures = 0, []
    for what, check in checks.items():
        try:
            check()
        except Exception as error:  # noqa: BLE001, PERF203  another client's exceptions are its own
            failures.append(f"    {what}: {type(error).__name__}: {str(error)[:160]!r}")
        else:
            passed += 1
    for line in (f"{name}: {passed} passed, {len(failures)} failed", *failures):
        say(line)


def sdk2_checks(info: SandboxInfo) -> dict[str, Callable[[], Any]]:
    """Calls of alibabacloud-oss-v2 that the console's own client has counterparts of, and those of stored states."""
    oss: Any = importlib.import_module("alibabacloud_oss_v2")
    config = oss.config.load_default()
    keys = (info.access_key_id, info.access_key_secret.reveal())
    config.credentials_provider = oss.credentials.StaticCredentialsProvider(*keys)
    config.region, config.endpoint, config.use_path_style = _REGION, info.path_style_endpoint, True
    client, bucket = oss.Client(config), "peer-sdk-v2"
    client.put_bucket(oss.PutBucketRequest(bucket=bucket))

    def call(name: str, **fields: Any) -> Any:
        request = "".join(part.title() for part in name.split("_")) + "Request"
        return getattr(client, name)(getattr(oss, request)(bucket=bucket, **fields))

    def expect(condition: bool) -> bool:
        if not condition:
            raise AssertionError
        return True

    def versions() -> None:
        status: Any = oss.VersioningConfiguration
        call("put_bucket_versioning", versioning_configuration=status(status="Enabled"))
        first = call("put_object", key="v", body=b"one").version_id
        call("put_object", key="v", body=b"two")
        expect(call("get_object", key="v", version_id=first).body.content == b"one")
        expect(call("head_object", key="v", version_id=first).content_length == 3)
        call("delete_object", key="v", version_id=first)
        call("put_bucket_versioning", versioning_configuration=status(status="Suspended"))

    def restored() -> None:
        call("put_object", key="cold", body=b"x", storage_class="ColdArchive")
        tier = oss.JobParameters(tier="Expedited")
        call("restore_object", key="cold", restore_request=oss.RestoreRequest(days=2, job_parameters=tier))
        expect('ongoing-request="true"' in call("head_object", key="cold").restore)

    def symlinks() -> None:
        call("put_object", key="target", body=b"abc")
        call("put_symlink", key="link", symlink_target="target")
        expect(call("get_symlink", key="link").target == "target")
        expect(call("get_object", key="link").body.content == b"abc")

    def encrypted() -> None:
        result = call("put_object", key="kms", body=b"x", server_side_encryption="KMS")
        expect(result.headers["x-oss-server-side-encryption"] == "KMS")

    def pages() -> None:
        for number in range(12):
            call("put_object", key=f"p/{number}", body=b"x")
        request = oss.ListObjectsV2Request(bucket=bucket, prefix="p/", max_keys=5, encoding_type="url")
        found = [page.contents for page in client.list_objects_v2_paginator().iter_page(request)]
        expect([len(page) for page in found] == [5, 5, 2])

    return {
        "put, get, head, range": lambda: (
            call("put_object", key="a b+/é", body=b"hello", metadata={"x": "1"}),
            expect(call("get_object", key="a b+/é", range_header="bytes=1-2").body.content == b"el"),
            expect(call("head_object", key="a b+/é").content_length == 5),
        ),
        "copy": lambda: call("copy_object", key="copy", source_key="a b+/é", source_bucket=bucket),
        "append": lambda: call("append_object", key="log", position=0, body=b"x"),
        "list pages, encoded": pages,
        "tagging": lambda: call("get_object_tagging", key="a b+/é"),
        "acl": lambda: call("get_object_acl", key="a b+/é"),
        "batch delete": lambda: call("delete_multiple_objects", objects=[oss.DeleteObject(key="copy")]),
        "bucket info and stat": lambda: (call("get_bucket_info"), call("get_bucket_stat")),
        "symlinks": symlinks,
        "server-side encryption": encrypted,
        "restore in progress": restored,
        "versions by id, suspended": versions,
    }


def connector_checks(info: SandboxInfo, folder: Path) -> dict[str, Callable[[], Any]]:
    """The README's examples: a map-style and an iterable dataset, and a checkpoint written and read."""
    import torch
    from osstorchconnector import OssCheckpoint, OssIterableDataset, OssMapDataset

    from tests.sandbox.conftest import make_bucket

    bucket = make_bucket(info)
    for number in range(5):
        bucket.put_object(f"readme/{number}.bin", bytes([number]) * 1000)
    config = folder / "connector.json"
    config.write_text(f'{{"logLevel": 1, "logPath": "{folder / "connector.log"}"}}')
    provider = SimpleNamespace(
        get_credentials=lambda: SimpleNamespace(
            access_key_id=info.access_key_id, access_key_secret=info.access_key_secret.reveal(), security_token=""
        )
    )
    common = {"region": _REGION, "cred_provider": provider, "config_path": str(config)}
    endpoint, uri = info.endpoints["standard"], f"oss://{info.bucket}"

    def expect(found: Any, wanted: Any) -> None:
        if found != wanted:
            raise AssertionError(f"{found!r}")

    def checkpoint() -> None:
        store: Any = OssCheckpoint(endpoint=endpoint, **common)
        with store.writer(f"{uri}/readme-checkpoint.pt") as writer:
            torch.save({"weight": torch.arange(4)}, writer)
        with store.reader(f"{uri}/readme-checkpoint.pt") as reader:
            expect(torch.load(reader)["weight"].tolist(), [0, 1, 2, 3])

    def expect_total(kind: Any) -> None:
        dataset = kind.from_prefix(f"{uri}/readme/", endpoint=endpoint, **common)
        rows = (dataset[number] for number in range(len(dataset))) if kind is OssMapDataset else iter(dataset)
        expect(sum(len(row.read()) for row in rows), 5000)

    return {
        "OssMapDataset": partial(expect_total, OssMapDataset),
        "OssIterableDataset": partial(expect_total, OssIterableDataset),
        "OssCheckpoint": checkpoint,
    }


def main() -> None:
    """Starts a sandbox in a temporary folder and runs what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oss2", type=Path, metavar="FOLDER")
    parser.add_argument("--auth", choices=["v1", "v4"], default="v4")
    parser.add_argument("--module", action="append", help="one test module of oss2; may be repeated")
    parser.add_argument("--sdk2", action="store_true")
    parser.add_argument("--connector", action="store_true")
    parser.add_argument("--ali-oss", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ossconsole-peers-") as folder:
        root = Path(folder)
        with SandboxProcess.start(root, unshaped=True, arguments=["--region", _REGION]) as running:
            if options.oss2:
                run_oss2(options.oss2.absolute(), running.info, options.auth, options.module or _MODULE_NAMES.split())
            if options.sdk2:
                run_checks("alibabacloud-oss-v2", sdk2_checks(running.info))
            if options.ali_oss:
                run_ali_oss(options.ali_oss.absolute(), running.info, options.auth, root)
            if options.connector:
                run_checks("osstorchconnector", connector_checks(running.info, root))


if __name__ == "__main__":
    main()
