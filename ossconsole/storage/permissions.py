"""The permissions that training needs below the checkpoint prefix, each tried with a small object of our own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import oss2

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.steps import PERMISSION_STAGES, OnStep, Stage, Step, Steps, ignore_step

PROBE_NAME = ".ossconsole-probe"
"""One name for all probes: where deleting is denied, a single object of a few bytes stays behind."""

_CONTENT = b"ossconsole probe\n"
_LIMIT_S = 5.0

_WHY = {
    Stage.DELETE: "the connector deletes a key before it writes a checkpoint to it (oss:DeleteObject)",
    Stage.LIST: "listing checkpoints (oss:ListObjects)",
    Stage.PUT: "copying a checkpoint onto its stable key (oss:PutObject)",
    Stage.GET: "resuming from a checkpoint (oss:GetObject)",
    Stage.MULTIPART: "writing checkpoints in parts (oss:PutObject)",
}


def probe_permissions(
    store: ObjectStore, prefix: str, *, on_step: OnStep = ignore_step, limit_s: float = 20.0
) -> Sequence[Step]:
    """One step per permission; each is tried whatever the others gave, except GET, which needs PUT's object."""
    steps = Steps(None, limit_s, on_step)
    key = f"{prefix}/{PROBE_NAME}"
    work: dict[Stage, Callable[[], object]] = {
        Stage.DELETE: lambda: store.delete(key),
        Stage.LIST: lambda: store.list_page(f"{prefix}/", max_keys=1),
        Stage.PUT: lambda: store.put(key, _CONTENT),
        Stage.GET: lambda: _get(store, key),
        Stage.MULTIPART: lambda: _multipart(store, key),
    }
    allowed: dict[Stage, bool] = {}
    for stage in PERMISSION_STAGES:
        if stage is Stage.GET and not allowed[Stage.PUT]:
            steps.skip(stage, "nothing to read, as writing failed")
        else:
            allowed[stage] = steps.run(stage, _LIMIT_S, functools.partial(_try, work[stage], stage))
    if allowed[Stage.PUT] or allowed[Stage.MULTIPART]:
        try:
            store.delete(key)
        except StorageError as error:
            steps.warn(Stage.DELETE, f"The probe's object {store.uri(key)} stays behind.", error.remedy)
    return steps.done


def _try(work: Callable[[], object], stage: Stage) -> str:
    try:
        work()
    except StorageError as error:
        if error.code == "AccessDenied":
            raise StorageError(
                error.message,
                remedy=f"Allow it in RAM; it is needed for {_WHY[stage]}.",
                status=error.status,
                code=error.code,
                ec=error.ec,
                request_id=error.request_id,
            ) from error
        raise
    return "allowed"


def _get(store: ObjectStore, key: str) -> None:
    if store.get(key) != _CONTENT:
        raise ConsoleError(f"{store.uri(key)} does not hold what was written.", remedy="Prove once more.")


def _multipart(store: ObjectStore, key: str) -> None:
    bucket = store.sdk
    upload = store.call(f"starting an upload to {store.uri(key)}", lambda: bucket.init_multipart_upload(key)).upload_id
    part = store.call(f"uploading a part of {store.uri(key)}", lambda: bucket.upload_part(key, upload, 1, _CONTENT))
    store.call(
        f"completing {store.uri(key)}",
        lambda: bucket.complete_multipart_upload(key, upload, [oss2.models.PartInfo(1, part.etag)]),
    )
