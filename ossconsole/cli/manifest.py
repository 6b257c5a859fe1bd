"""`ossconsole manifest`: writes the manifest of a dataset from a listing, so that runs need not list it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ossconsole.cli.follow import emit
from ossconsole.cli.options import Target, json_lines_option, label_options, profile_options, readonly_option
from ossconsole.cli.output import report_and_wait, say, say_json
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.cli.upload import print_unused
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.text import counted

if TYPE_CHECKING:
    from ossconsole.dataset.manifest import Manifest

_REPORT_EVERY_S = 2.0


@click.command(short_help="Write the manifest of images that are in the bucket already.")
@click.option("--force", is_flag=True, help="Replace a manifest that exists.")
@click.option("--dry-run", is_flag=True, help="List the dataset without writing the manifest.")
@label_options
@json_lines_option
@profile_options
@readonly_option
def manifest(
    *,
    target: Target,
    force: bool,
    dry_run: bool,
    val_labels: str,
    class_index: str,
    as_json: bool,
    readonly: bool,
) -> None:
    """Write the manifest of the images in train/<class>/ and val/<class>/ below the dataset prefix.

    Each run lists a prefix without a manifest. Write the manifest again (--force) after images were
    added or removed. `upload` writes the manifest of what it uploads.
    """
    from ossconsole.dataset.labels import LabelFiles
    from ossconsole.dataset.listing import manifest_from_listing
    from ossconsole.dataset.manifest import SHARDS_NAME, manifest_key, object_key, write_manifest
    from ossconsole.storage.client import ObjectStore

    if readonly and not dry_run:
        raise SettingsError("--readonly disables writing the manifest.", remedy="Leave it out, or add --dry-run.")
    with target.open() as opened:
        fill_sandbox(opened)
        store = ObjectStore(opened.profile, opened.credentials, pause=report_and_wait)
        prefix = opened.profile.dataset_prefix
        key = manifest_key(prefix)
        try:
            if store.exists(object_key(prefix, SHARDS_NAME)):
                raise ConsoleError(
                    f"{store.uri(prefix)} is a dataset of tar shards: {SHARDS_NAME} lists them.",
                    remedy="Runs read that list; with a manifest they would ignore it.",
                )
            if not (force or dry_run) and store.exists(key):
                raise ConsoleError(f"{store.uri(key)} exists already.", remedy="Add --force to replace it.")
            began = time.monotonic()
            labels = LabelFiles(val_labels=val_labels, class_index=class_index)
            progress = _ListingProgress(store.uri(prefix), as_json=as_json)
            listed, unused = manifest_from_listing(store, prefix, progress, labels)
            print_unused(unused, as_json=as_json)
            if not dry_run:
                write_manifest(store, prefix, listed)
            _print_summary(listed, store.uri(key), time.monotonic() - began, written=not dry_run, as_json=as_json)
        finally:
            store.close()


class _ListingProgress:
    """Prints the number of objects listed so far, every 2 s."""

    def __init__(self, uri: str, *, as_json: bool) -> None:
        self._uri = uri
        self._as_json = as_json
        self._at = time.monotonic() + _REPORT_EVERY_S

    def __call__(self, listed: int) -> None:
        if time.monotonic() >= self._at:
            self._at = time.monotonic() + _REPORT_EVERY_S
            if self._as_json:
                emit("progress", objects=listed)
            else:
                say(f"Listing {self._uri}/: {counted(listed, 'object')} so far.", err=True)


def _print_summary(listed: Manifest, uri: str, seconds: float, *, written: bool, as_json: bool) -> None:
    from ossconsole.dataset.listing import LABELS

    counts = {split: len(samples) for split, samples in listed.splits.items()}
    size = sum(listed.sample_bytes(sample) for samples in listed.splits.values() for sample in samples)
    if as_json:
        say_json(
            {
                "event": "summary",
                "manifest": uri if written else "",
                "format": str(listed.format),
                "classes": len(listed.classes),
                "train": counts.get("train", 0),
                "val": counts.get("val", 0),
                "bytes": size,
                "labels": listed.preparation.get(LABELS, ""),
                "seconds": round(seconds, 3),
            }
        )
        return
    splits = " and ".join(counted(count, f"{split} sample") for split, count in counts.items())
    classes = counted(len(listed.classes), "class", "classes")
    say(f"{splits} in {classes}, {listed.format}, {size / 1e9:.2f} GB; listed in {seconds:.1f} s.")
    if described := listed.preparation.get(LABELS):
        say(f"Labels: {described}.")
    say(f"Manifest: {uri}" if written else "The manifest was not written (--dry-run).")
