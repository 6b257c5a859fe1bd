"""Checkpoints: their content, their keys, and resuming from one at the exact step."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torchvision

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import TRAIN
from ossconsole.storage.client import ObjectStore
from ossconsole.training.compute.device import map_tensors
from ossconsole.training.compute.model import MAX_WEIGHTS_BYTES, load_untrusted, refuse_not_finite
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo

FORMAT = "ossconsole-checkpoint"
VERSION = 1
STABLE_NAME = "resnet18.pt"
BEST_NAME = "resnet18-best.pt"
LATEST = "latest"
_MAY_DIFFER = {"run", "sample_format"}


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run: epochs (from 1) and steps done, the sums of the current epoch (see EpochMeter), metrics."""

    epoch: int
    step: int
    train_sums: list[float]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint. `wait_for_copy` blocks until the tensors of `trainer_state` are on the host."""

    trainer_state: dict[str, Any]
    progress: RunProgress
    run_config: dict[str, Any]
    wait_for_copy: Callable[[], object]

    def pack(self) -> bytes:
        """The bytes of the checkpoint."""
        self.wait_for_copy()
        return pack(map_tensors(self.trainer_state, _with_own_storage), self.progress, self.run_config)


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """A copy when the storage is shared: torch.save writes whole storages, and loading one view would keep them."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def checkpoint_key(prefix: str, run: str, progress: RunProgress) -> str:
    """A key used once: opening the connector's writer deletes the key's object."""
    return f"{prefix}/resnet18-{run}-e{progress.epoch:02d}-s{progress.step:06d}.pt"


def stable_key(prefix: str) -> str:
    """The key of the newest checkpoint."""
    return f"{prefix}/{STABLE_NAME}"


def best_key(prefix: str) -> str:
    """The key of the checkpoint with the highest top-1 accuracy of the last run."""
    return f"{prefix}/{BEST_NAME}"


def run_config_of(context: RunContext, data: TrainingData, rank_info: RankInfo) -> dict[str, Any]:
    """What a run that resumes from a checkpoint must have in common with the run that wrote it, and that run's id."""
    settings = context.settings
    return {
        "run": context.id,
        "seed": settings.seed,
        "batch_size": settings.batch_size * rank_info.world,
        "samples": data.count(TRAIN),
        "classes": list(data.manifest.classes),
        "sample_format": str(data.manifest.format),
        "image_size": settings.image_size or data.manifest.size,
    }


def pack(trainer_state: dict[str, Any], progress: RunProgress, run_config: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint. `run_config` describes run, data and settings in plain values, without secrets."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "version": VERSION,
            "epoch": progress.epoch,
            "step": progress.step,
            "train_sums": progress.train_sums,
            "metrics": progress.metrics,
            "versions": {
                "ossconsole": __version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
            },
            **run_config,
            **trainer_state,
        },
        buffer,
    )
    return buffer.getvalue()


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """The content of a checkpoint, loaded without running code. Raises ConsoleError when it is not one of ours."""
    state = load_untrusted(data, where)
    if state.get("format") != FORMAT:
        raise ConsoleError(
            f"{where} is not a checkpoint of this console.", remedy="To start from its weights use --weights instead."
        )
    if state.get("version") != VERSION:
        raise ConsoleError(
            f"{where} has checkpoint version {state.get('version')!r}; this program reads {VERSION}.",
            remedy="Use the ossconsole that wrote it.",
        )
    return state


_URI = re.compile(r"^oss://(?P<bucket>[^/]+)/(?P<key>.+)$")


def fetch_uri(store: ObjectStore, uri: str) -> bytes:
    """The object of an `oss://bucket/key`.

    Raises ConsoleError when it is in another bucket than the profile's, or larger than MAX_WEIGHTS_BYTES.
    """
    match = _URI.match(uri)
    if match is None or match["bucket"] != store.profile.bucket:
        raise ConsoleError(
            f"{uri} is not an object of the bucket {store.profile.bucket}.",
            remedy=f"Give oss://{store.profile.bucket}/<key>, or another --profile.",
        )
    size = store.head(match["key"]).size
    if size > MAX_WEIGHTS_BYTES:  # before it fills the memory
        raise ConsoleError(
            f"{uri} has {size:,} bytes, which is too large for a ResNet-18.", remedy="Select another object."
        )
    return store.get(match["key"])


def resume(
    context: RunContext,
    store: ObjectStore,
    group: ProcessGroup,
    run_config: dict[str, Any],
    load: Callable[[dict[str, Any]], None],
) -> None:
    """Resumes from the checkpoint of the settings, or after a torchrun restart from the one that this run wrote.

    `load` restores the state of the run from the checkpoint's content; `run_config` must match that of the checkpoint.
    Raises ConsoleError when it does not, or when the object is not a complete checkpoint.
    """
    uri = _resume_uri(context.settings.resume, store)
    if group.rank_info.attempt:
        own = _own_checkpoint(context, store) if group.rank_info.is_rank_zero else ""
        uri = group.all_gather_object(own)[0] or uri
    if not uri:
        return
    state = unpack(fetch_uri(store, uri), uri)
    for name, wanted in run_config.items():
        if name not in _MAY_DIFFER and state.get(name) != wanted:
            raise ConsoleError(
                f"{uri} was written with {_difference(name, state.get(name), wanted)}.",
                remedy=f"Use the same settings and dataset, or start from its weights: --weights {uri}.",
            )
    if isinstance(state.get("model"), dict):
        refuse_not_finite(state["model"], uri)
    try:
        load(state)
        epoch, context.step = int(state["epoch"]), int(state["step"])
        original_lr = state["schedule"]["asked"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        missing = f" ({error} is missing)" if isinstance(error, KeyError) else ""
        raise ConsoleError(
            f"{uri} is not complete: a run cannot resume from it{missing}.",
            remedy=f"Start from its weights: --weights {uri}.",
        ) from error
    context.info(f"Resumed after step {context.step} of epoch {epoch}, from {uri}.")
    if original_lr != context.settings.learning_rate:
        context.info(f"The peak learning rate is now {context.settings.learning_rate:g}.")


def _difference(name: str, found: object, wanted: object) -> str:
    """The text after "written with"."""
    if name == "classes":
        was, has = (len(each) if isinstance(each, Sized) else 0 for each in (found, wanted))
        return f"{counted(was, 'class', 'classes')}; this dataset has {'others' if was == has else has}"
    return f"another {name.replace('_', ' ')} than this run has"


def _resume_uri(named: str, store: ObjectStore) -> str:
    """The URI of a checkpoint given as a key, as a URI, or as LATEST; "" for none."""
    if named == LATEST:
        return store.uri(stable_key(store.profile.checkpoint_prefix))
    return store.uri(named) if named and "://" not in named else named


def _own_checkpoint(context: RunContext, store: ObjectStore) -> str:
    """The URI of the newest checkpoint if this run wrote it, else ""."""
    key = stable_key(context.profile.checkpoint_prefix)
    if not store.exists(key):
        return ""
    uri = store.uri(key)
    return uri if unpack(store.get(key), uri).get("run") == context.id else ""
