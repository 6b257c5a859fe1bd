"""`ossconsole ls`: the folders and objects below a prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ossconsole.cli.options import OpenTarget, Target, json_lines_option, profile_options, reads_only
from ossconsole.cli.output import report_and_wait, say, say_json
from ossconsole.config.errors import SettingsError
from ossconsole.config.text import counted
from ossconsole.storage.objects import SYMLINK

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore


@click.command(short_help="List the folders and objects below a prefix.")
@click.argument("prefix", default="")
@click.option("--recursive", "-r", is_flag=True, help="List every object below PREFIX, not only its direct children.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this number of lines.")
@json_lines_option
@profile_options
@reads_only
def ls(prefix: str, recursive: bool, limit: int | None, as_json: bool, target: Target) -> None:
    """List the folders and objects below PREFIX, in OSS's order, as they arrive.

    PREFIX is a folder, with or without its slash, or the beginning of keys; oss://BUCKET/PREFIX is accepted too.
    """
    from ossconsole.storage.client import ObjectStore

    with target.open() as opened:
        below = key_prefix(prefix, opened.profile.bucket)
        fill_if_listed(opened, below)
        store = ObjectStore(opened.profile, opened.credentials, pause=report_and_wait)
        try:
            folders = objects = size = 0
            truncated = False
            below = folder_prefix(store, below)
            for entry in _entries(store, below, recursive=recursive):
                if limit is not None and folders + objects == limit:
                    truncated = True
                    break
                is_folder = entry["type"] == "folder"
                folders += is_folder
                objects += not is_folder
                size += entry.get("size", 0)
                if as_json:
                    say_json(entry)
                else:
                    say(_line(entry))
        finally:
            store.close()
    summary = {"event": "summary", "folders": folders, "objects": objects, "bytes": size, "truncated": truncated}
    if as_json:
        say_json(summary)
    else:
        more = ", and more" if truncated else ""
        say(f"{counted(objects, 'object')}, {counted(size, 'byte')}, {counted(folders, 'folder')}{more}", err=True)


def fill_if_listed(opened: OpenTarget, below: str) -> None:
    """Creates the sandbox's sample dataset where the listing would contain it. Raises ConsoleError."""
    from ossconsole.cli.sandbox import fill_sandbox

    dataset = f"{opened.profile.dataset_prefix}/"
    if dataset.startswith(below) or below.startswith(dataset):
        fill_sandbox(opened)


def key_prefix(text: str, bucket: str) -> str:
    """The key prefix of the argument. Raises SettingsError for a URI of another bucket."""
    if not text.startswith("oss://"):
        return text.lstrip("/")  # no key begins with a slash
    named, _, prefix = text.removeprefix("oss://").partition("/")
    if not named:
        raise SettingsError(f"{text} does not name a bucket.", remedy=f"Give oss://{bucket}/PREFIX.")
    if named != bucket:
        raise SettingsError(
            f"{text} is in another bucket than the profile's {bucket}.", remedy=f"Add --bucket {named}."
        )
    return prefix


def folder_prefix(store: ObjectStore, prefix: str) -> str:
    """The prefix, with a slash added where it names a folder but not an object."""
    if not prefix or prefix.endswith("/"):
        return prefix
    page = store.list_page(f"{prefix}/", max_keys=1)
    is_folder = (page.objects or page.prefixes) and not store.exists(prefix)
    return f"{prefix}/" if is_folder else prefix


def _entries(store: ObjectStore, prefix: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    for page in store.list_pages(prefix, delimiter="" if recursive else "/"):
        for folder in page.prefixes:
            yield {"type": "folder", "key": folder}
        for found in page.objects:
            yield {
                "type": "object",
                "key": found.key,
                "size": found.size,
                "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.modified)),
                "storage_class": found.storage_class,
                "object_type": found.type,
                "etag": found.etag,
            }


def _line(entry: dict[str, Any]) -> str:
    if entry["type"] == "folder":
        return f"{'folder':>15}  {'':20}  {'':<12}  {entry['key']}"
    kind = SYMLINK if entry["object_type"] == SYMLINK else entry["storage_class"]
    return f"{entry['size']:>15,}  {entry['modified']}  {kind:<12}  {entry['key']}"
