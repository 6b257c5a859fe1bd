"""`ls`: the folders and objects below a prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ossconsole.cli.options import Target, profile_options
from ossconsole.config.errors import SettingsError

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.retry import Wait


@click.command()
@click.argument("prefix", default="")
@click.option("--recursive", "-r", is_flag=True, help="Every object below PREFIX, however deep.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many lines.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line; the last one is the summary.")
@profile_options
def ls(prefix: str, recursive: bool, limit: int | None, as_json: bool, target: Target) -> None:
    """List what is below PREFIX, in OSS's order, as it arrives.

    PREFIX is a folder, with or without its slash, or what keys begin with; oss://BUCKET/PREFIX is the same.
    """
    from ossconsole.storage.client import ObjectStore

    with target.open() as opened:
        store = ObjectStore(opened.profile, opened.credentials, pause=_wait)
        try:
            folders = objects = size = 0
            truncated = False
            below = _folder(store, _key_prefix(prefix, opened.profile.bucket))
            for entry in _entries(store, below, recursive=recursive):
                if limit is not None and folders + objects == limit:
                    truncated = True
                    break
                is_folder = entry["type"] == "folder"
                folders += is_folder
                objects += not is_folder
                size += entry.get("size", 0)
                click.echo(msgspec.json.encode(entry).decode() if as_json else _line(entry))
        finally:
            store.close()
    summary = {"event": "summary", "folders": folders, "objects": objects, "bytes": size, "truncated": truncated}
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
    else:
        more = ", and more" if truncated else ""
        click.echo(f"{objects:,} objects, {size:,} bytes, {folders:,} folders{more}", err=True)


def _wait(wait: Wait) -> None:
    from ossconsole.storage.names import safe_text

    click.echo(f"Waiting: {safe_text(str(wait))}", err=True)
    time.sleep(wait.seconds)


def _key_prefix(text: str, bucket: str) -> str:
    """The key prefix in what was typed. Raises SettingsError for a URI of another bucket."""
    if not text.startswith("oss://"):
        return text
    named, _, prefix = text.removeprefix("oss://").partition("/")
    if named != bucket:
        raise SettingsError(
            f"{text} is in another bucket than the profile's {bucket}.", remedy=f"Add --bucket {named}."
        )
    return prefix


def _folder(store: ObjectStore, prefix: str) -> str:
    """The prefix with a slash where it names a folder and no object."""
    if not prefix or prefix.endswith("/"):
        return prefix
    page = store.list_page(f"{prefix}/", max_keys=1)
    is_folder = (page.objects or page.prefixes) and not store.exists(prefix)
    return f"{prefix}/" if is_folder else prefix


def _entries(store: ObjectStore, prefix: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        page = store.list_page(prefix, delimiter="" if recursive else "/", token=token)
        for folder in page.prefixes:
            yield {"type": "folder", "key": folder}
        for found in page.objects:
            yield {
                "type": "object",
                "key": found.key,
                "size": found.size,
                "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.modified)),
                "storage_class": found.storage_class,
                "etag": found.etag,
            }
        token = page.next_token
        if not token:
            return


def _line(entry: dict[str, Any]) -> str:
    from ossconsole.storage.names import safe_text

    key = safe_text(entry["key"])
    if entry["type"] == "folder":
        return f"{'folder':>15}  {'':20}  {'':<12}  {key}"
    return f"{entry['size']:>15,}  {entry['modified']}  {entry['storage_class']:<12}  {key}"
