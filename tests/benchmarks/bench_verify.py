"""The time of an upload of samples that are in the bucket already, behind a proxy that changes ETags and adds latency.

    python -m tests.benchmarks.bench_verify [--samples 400] [--delay-ms 30]

Prints, for each kind of changed ETags, the requests and seconds of the first and the second run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import msgspec

from ossconsole.cli.output import say
from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.sandbox.process import SandboxProcess
from tests.dataset.conftest import jpeg
from tests.storage.etag_proxy import Changed, changing_etags


def main() -> None:
    """Uploads once directly, then twice through each proxy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ossconsole-verify-") as folder:
        root = Path(folder)
        os.environ[STATE_DIR_VARIABLE] = str(root)
        source = root / "source" / "train" / "ants"
        source.mkdir(parents=True)
        for number in range(options.samples):
            (source / f"{number:06}.jpg").write_bytes(jpeg(number % 50))
        (root / "sandbox").mkdir(mode=0o700)
        with SandboxProcess.start(root / "sandbox", unshaped=True) as sandbox:
            keys = FixedSource(sandbox.credentials())
            settings = UploadSettings(source=root / "source", format=SampleFormat.IMAGE_U8, size=16, workers=1)
            profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix="verify")

            def upload(through: object) -> float:
                began = time.perf_counter()
                job = create_upload(through, keys, settings)  # type: ignore[arg-type]
                job.start()
                job.result(600)
                return time.perf_counter() - began

            upload(profile)
            for changed in Changed:
                with changing_etags(profile, changed, options.delay_ms / 1000) as (proxy, through):
                    for run in ("first", "second"):
                        proxy.requests.clear()
                        seconds = upload(through)
                        counts = ", ".join(f"{count} {method}" for method, count in sorted(proxy.requests.items()))
                        say(f"{changed.value:10} {run:6} run: {seconds:5.2f} s  {counts}")


if __name__ == "__main__":
    main()
