"""`ossconsole.OssImages`: batches of images from OSS for any training script."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ossconsole.api.arguments import ArgumentError, checked
from ossconsole.api.profile import open_profile
from ossconsole.api.ranks import this_rank, world_size
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import CHANNELS
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.telemetry.runs import new_run_id
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData, training_data
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.failover import FailoverLoader
from ossconsole.training.loading.loader import Batch, sample_transform
from ossconsole.training.plan import Plan, Split, SplitRequests
from ossconsole.training.settings import Positive, TrainSettings

log = logging.getLogger(__name__)

_EPOCHS = 1_000_000  # more than any script iterates


@dataclass
class _Position:
    """Where a loader is in its plan: the number of the `next` batch, and whether its epoch was begun.

    `resumed` is True until the first loop after `load_state_dict`; `iteration` counts the loops.
    """

    next: int = 0
    in_epoch: bool = False
    resumed: bool = False
    iteration: int = 0


class _ImagesSettings(TrainSettings, frozen=True, kw_only=True):
    """The settings of a loader: its batch size is never automatic."""

    batch_size: Positive = 64


class OssImages:
    """An iterable of `(images, labels)` batches of one split, read by the connector in processes of their own.

    Without a `device`, images are uint8 on the host, (n, 3, size, size), channels last; tensor-f32 samples are float32
    and normalised. With one they are normalised float32 on that device. Labels are int64, (n,). Each iteration is one
    epoch, in an order given by `seed`; `state_dict` and `load_state_dict` resume at the next batch. Wrapped in
    `ossconsole.watch`, the console shows the loop, and switches the endpoint while it runs.

    `profile` is one of the console ("sandbox" is the embedded server), "" for the active one; `bucket`, `region` and
    `prefix` (of the dataset) replace its own. `workers` are reader processes. `augment` crops and flips at random,
    by default for training. `image_size` 0 is automatic, as in `ossconsole train`. Under torch.distributed each rank
    reads its own part of every batch of `batch_size` times the number of ranks. `val_labels` and `class_index` are the
    label files of a dataset without a manifest, as in `ossconsole train`.

    Raises ArgumentError for a value that an argument cannot have, and other ConsoleErrors: for example without a
    profile, without credentials, or without such a dataset.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        batch_size: int = 64,
        image_size: int = 0,
        augment: bool | None = None,
        workers: int = 2,
        seed: int = 0,
        device: torch.device | str | None = None,
        profile: str = "",
        bucket: str = "",
        region: str = "",
        prefix: str = "",
        endpoint: str = "standard",
        val_split: float = 0.1,
        val_labels: str = "",
        class_index: str = "",
    ) -> None:
        self.last_batch: Batch | None = None
        """The newest batch with its figures, for `ossconsole.watch`."""
        self._split = _split(split)
        self._device = None if device is None else _device(device)
        arguments = {
            "epochs": _EPOCHS,
            "batch_size": batch_size,
            "workers": workers,
            "image_size": image_size,
            "augment": self._split is Split.TRAIN if augment is None else augment,
            "endpoint": endpoint,
            "seed": seed,
            "val_split": val_split,
            "val_labels": val_labels,
            "class_index": class_index,
        }
        self._settings = checked(_ImagesSettings, "ossconsole.OssImages", arguments)
        self.batch_size, self.num_workers = self._settings.batch_size, self._settings.workers
        self._closed = False
        self._position = _Position()
        self._source: FailoverLoader | None = None
        self._plan: Plan | None = None
        with contextlib.ExitStack() as resources:
            flags = {"profile": profile, "bucket": bucket, "region": region, "dataset_prefix": prefix}
            opened = open_profile(resources, flags)
            fill_sandbox(opened)
            self._connector = ConnectorSettings.of(opened.profile, opened.credentials)
            self.context = RunContext(new_run_id(), opened.profile, opened.credentials, self._settings, _log_event)
            store = resources.enter_context(contextlib.closing(ObjectStore(opened.profile, opened.credentials)))
            labels, prefix = self._settings.label_files, opened.profile.dataset_prefix
            self._data = training_data(store, prefix, val_split=val_split, seed=seed, labels=labels)
            _check_split(self._data, self._split, store)
            self._labels = torch.from_numpy(self._data.columns(str(self._split)).labels)
            self._transform = sample_transform(self._settings, self._data)
            self._compute = self._device_context()
            self._resources = resources.pop_all()
        self.classes = self._data.classes
        """The names of the classes, by label."""
        self.sample_format = str(self._data.format)
        self.stored_as = "shards" if self._data.sharded else "objects"

    def _device_context(self) -> DeviceContext | None:
        if self._device is None:
            return None
        return DeviceContext(self._settings, self._transform, device=self._device, sharing=world_size())

    @property
    def image_size(self) -> int:
        """The side of the images, pixels."""
        return self._transform.size

    @property
    def epoch(self) -> int:
        """The number of complete epochs, also those before a `load_state_dict`."""
        per_epoch = self._planned().batches_per_epoch
        place = self._position
        return place.next // per_epoch if place.in_epoch else -(-place.next // per_epoch)

    def __len__(self) -> int:
        """The batches of an epoch on this rank."""
        plan = self._planned()
        training = plan.steps_per_epoch
        return training if self._split is Split.TRAIN else plan.batches_per_epoch - training

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._check_open()
        if self._position.in_epoch and not self._position.resumed:
            self._skip_epoch()
        self._position.resumed = False
        self._position.iteration += 1
        return self._epoch(self._source or self._open(), self._position.iteration)

    def _check_open(self) -> None:
        if self._closed:
            raise ConsoleError(
                "These OssImages were closed.", remedy="Make new ones, or close them after the last loop."
            )

    def _epoch(self, source: FailoverLoader, iteration: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            self._check_open()
            if iteration != self._position.iteration:
                raise ConsoleError(
                    "These OssImages are iterated twice at the same time.", remedy="Use one OssImages for each loop."
                )
            if self._compute is not None:
                self._compute.free_slots()
            batch = source.next()
            if batch is None:  # stopped by the console
                return
            for sample in batch.bad:
                self.context.warn(f"Skipped {sample.key}: {sample.reason}.", "Replace or delete the object.")
            self.last_batch = batch
            self._position.next, self._position.in_epoch = batch.request.number + 1, not batch.request.last
            if len(batch.rows) or world_size() > 1:  # of none the mean loss is NaN; ranks need the same number of steps
                yield self._images(batch.data), self._labels_of(batch)
            if batch.request.last:
                return

    def state_dict(self) -> dict[str, Any]:
        """The position after the newest batch, and what the order depends on; plain values."""
        return {
            "next": self._position.next,
            "in_epoch": self._position.in_epoch,
            **self._order(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the batch of `state`.

        Raises ConsoleError where dataset, seed or batch size differ, or where it is not what `state_dict` returned.
        """
        after = state.get("next") if isinstance(state, Mapping) else None
        if not isinstance(after, int) or after < 0:
            raise ArgumentError(
                "This is not a state of OssImages: it has no number of the next batch.",
                remedy="Give what state_dict() of OssImages returned.",
            )
        for name, mine in self._order().items():
            if state.get(name) != mine:
                raise ConsoleError(
                    f"The state has {name} {state.get(name)!r}, this loader has {mine!r}: the order would differ.",
                    remedy="Use the same dataset, seed and batch size of all ranks together.",
                )
        self._close_source()
        place = self._position
        place.next, place.in_epoch, place.resumed = after, bool(state.get("in_epoch")), True

    def close(self) -> None:
        """Ends the readers. A second call does nothing."""
        self._closed = True
        self._close_source()
        self._resources.close()

    def __enter__(self) -> OssImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self) -> dict[str, Any]:
        return {
            "split": str(self._split),
            "seed": self._settings.seed,
            "batch_size": self.batch_size * world_size(),
            "samples": self._data.count(str(self._split)),
        }

    def _planned(self) -> Plan:
        """The plan; made late, as the ranks are known once torch.distributed is initialised."""
        if self._plan is None:
            data = self._data
            self._plan = Plan(
                self._settings,
                data.count(str(Split.TRAIN)),
                data.count(str(Split.VAL)),
                rank=this_rank(),
                world=world_size(),
                tar_bytes=data.tar_bytes,
            )
        return self._plan

    def _skip_epoch(self) -> None:
        """The last loop ended early: the rest of its epoch is not used."""
        per_epoch = self._planned().batches_per_epoch
        self._close_source()
        self._position.next, self._position.in_epoch = -(-self._position.next // per_epoch) * per_epoch, False

    def _open(self) -> FailoverLoader:
        cuda = self._device is not None and self._device.type == "cuda"
        context = self.context
        self._source = FailoverLoader(
            context,
            self._connector,
            self._data,
            SplitRequests(self._planned(), self._split),
            start=self._position.next,
            pin=cuda,
            time_singles=context.profile.endpoint(EndpointKind.ACCELERATED) is not None,
            sharing=world_size(),
            poll_stop=lambda: None,
            on_pause=lambda: None,
            on_recovery=lambda: None,
        )
        return self._source

    def _close_source(self) -> None:
        if self._source is not None:
            if self._compute is not None:
                self._compute.free_all_slots()
            self._source.close()
            self._source = None

    def _images(self, rows: torch.Tensor) -> torch.Tensor:
        if self._compute is not None:
            return self._compute.images(rows)
        if self._transform.raw:
            size = self._transform.stored_size
            return rows.view(torch.float32).view(-1, CHANNELS, size, size).clone()
        size = self._transform.size
        # A copy: the buffer is used again for later batches.
        return rows.view(-1, size, size, CHANNELS).permute(0, 3, 1, 2).clone()

    def _labels_of(self, batch: Batch) -> torch.Tensor:
        labels = self._labels[batch.rows]
        return labels if self._compute is None else self._compute.labels(labels)


def _check_split(data: TrainingData, split: Split, store: ObjectStore) -> None:
    """Raises ConsoleError where the dataset has no samples of the split."""
    if not data.count(str(split)):
        raise ConsoleError(
            f"The dataset {store.uri(data.prefix)} has no {split} split.",
            remedy="Upload images to it, or hold out some of the training images with val_split.",
        )


def _device(device: torch.device | str) -> torch.device:
    """The device, a GPU with its index, which CUDA needs: that of the current one where it is not given."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"ossconsole.OssImages got device={device!r}, which PyTorch does not know.", remedy='Give "cuda" or "cpu".'
        ) from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ArgumentError(
            "ossconsole.OssImages got device='cuda', and PyTorch cannot use a GPU here.",
            remedy='`ossconsole doctor` says why; device="cpu" needs none.',
        )
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


def _split(name: str) -> Split:
    try:
        return Split(name)
    except ValueError:
        raise ConsoleError(f"{name!r} is not a split.", remedy='Use "train" or "val".') from None


def _log_event(event: Event) -> None:
    """Without `ossconsole.watch`, warnings and errors go to the log of Python."""
    if isinstance(event, events.WarningEvent | events.ErrorEvent):
        log.warning("%s", f"{event.message} {event.remedy}".strip())
