"""Commands that take time or change the bucket: download, delete, copy, restore, count, check; most start a job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from ossconsole.config.endpoints import public_endpoint
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import typed_path, working_folder
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.contents import MAX_SAMPLE_BYTES, ImageContent, folder_images, show_image
from ossconsole.dataset.manifest import Manifest
from ossconsole.storage.jobs.actions import (
    RESTORE_TIERS,
    Copy,
    Delete,
    ObjectOrPrefix,
    Restore,
    RestoreTier,
    Usage,
    UsageTotals,
    Versioning,
    key_of,
    presigned_url,
    restore_time,
    versioning,
)
from ossconsole.storage.jobs.download import Download, Existing, local_component
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.objects import ObjectSummary
from ossconsole.tui.browse.browser import Browser, DetailRead
from ossconsole.tui.browse.checkpoints import WeightsDownload, check_file, weights_source
from ossconsole.tui.browse.detail import Detail
from ossconsole.tui.browse.jobs import job_ended
from ossconsole.tui.browse.model import Selection
from ossconsole.tui.browse.navigation import typed_key
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import (
    Choice,
    ConfirmScreen,
    ImageScreen,
    ListScreen,
    PromptScreen,
    TextScreen,
    TypedConfirmScreen,
)
from ossconsole.tui.kit.text import Line, duration, shorten_middle, size

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_FORM = "download"
_FILE, _WEIGHTS = "file", "weights"
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_KNOWN_WITHIN_S, _KNOWN_POLL_S = 2.0, 0.05
_URL_LIFE_S = 3600
_UNDO_NOTES = {
    Versioning.NEVER: "This cannot be undone.",
    Versioning.ENABLED: "The bucket is versioned: deleted objects are kept as versions and still billed.",
    Versioning.SUSPENDED: "Versioning is suspended: older versions stay, but this deletion cannot be undone.",
}


# Download


@work(exclusive=True, group="dialog", exit_on_error=False)
async def download(screen: Browser) -> None:
    """Download the selected objects and folders into a local folder."""
    store, sources, base = screen.store, screen.targets, screen.model.rows.base
    if store is None or not sources:
        return
    await _content_known(screen, sources)
    if (checkpoint := weights_source(screen)) is not None:
        part = await screen.ask(_part_question(checkpoint))
        if part == _WEIGHTS:
            await _download_weights(screen, store, checkpoint)
        if part != _FILE:
            return
    last_folder = memory.recall(_FORM, store.profile.name).get("folder") or str(working_folder())
    question = f"Download {_label(sources)} into this local folder:"
    answer = await screen.ask(PromptScreen("Download", question, str(last_folder), check=_check_folder))
    if not answer:
        return
    folder, existing = _folder(answer), Existing.KEEP
    if await asyncio.to_thread(_any_exists, folder, sources, base):
        choice = await screen.ask(_existing_question(folder))
        if not choice:
            return
        existing = Existing(choice)
    screen.console.remember(_FORM, store.profile.name, {"folder": str(folder)})
    screen.run_job(Download(store, sources, base, folder, existing=existing))


async def _content_known(screen: Browser, sources: Sequence[ObjectOrPrefix]) -> None:
    """Waits shortly for what a file of torch contains: the question does not depend on the pace of the keys."""
    (source, *others), until = sources, time.monotonic() + _KNOWN_WITHIN_S
    if others or isinstance(source, str) or not source.key.endswith(_TORCH_SUFFIXES):
        return
    while time.monotonic() < until:
        detail = screen.detail
        if detail is None or detail.key != source.key or detail.content is not None or detail.problem:
            return
        await asyncio.sleep(_KNOWN_POLL_S)


def _part_question(checkpoint: ObjectSummary) -> ConfirmScreen:
    return ConfirmScreen(
        "Download",
        f"{safe_text(checkpoint.key)} is a checkpoint. Its weights alone are a file that plain PyTorch loads.",
        (Choice("", "Cancel"), Choice(_FILE, "File"), Choice(_WEIGHTS, "Weights only")),
    )


async def _download_weights(screen: Browser, store: ObjectStore, checkpoint: ObjectSummary) -> None:
    folder = _folder(memory.recall(_FORM, store.profile.name).get("folder") or str(working_folder()))
    name = local_component(Path(checkpoint.key).stem) + "-weights.safetensors"
    question = "Write the weights into this file (.safetensors, .pt, .pth or .onnx):"
    answer = await screen.ask(
        PromptScreen("Download weights", question, str(folder / name), check=lambda text: check_file(_folder(text)))
    )
    if answer:
        screen.run_job(WeightsDownload(store, checkpoint, _folder(answer)))


def _folder(text: str) -> Path:
    return working_folder() / typed_path(text)


def _check_folder(text: str) -> None:
    """Raises ConsoleError where the folder, or the nearest parent that exists, is not a folder."""
    path = _folder(text)
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not text.strip() or not nearest.is_dir():
        raise ConsoleError(f"{path} is not a folder.")


def _any_exists(folder: Path, sources: Sequence[ObjectOrPrefix], base: str) -> bool:
    """Whether one of the files or folders to write exists already."""
    names = (key_of(source)[len(base) :].split("/", maxsplit=1)[0] for source in sources)
    return any((folder / local_component(name)).exists() for name in names)


def _existing_question(folder: Path) -> ConfirmScreen:
    return ConfirmScreen(
        "Files exist already",
        f"Some of these files exist in {folder}. Files with the same content (size and time, or CRC64) are skipped. "
        "Files that differ can be kept, replaced, or the new ones get another name.",
        (
            Choice("", "Cancel"),
            Choice(Existing.KEEP.value, "Keep mine"),
            Choice(Existing.RENAME.value, "Rename new"),
            Choice(Existing.REPLACE.value, "Replace", "warning"),
        ),
    )


# Delete, copy, rename, restore


@work(exclusive=True, group="dialog", exit_on_error=False)
async def delete(screen: Browser) -> None:
    """Delete the selected objects and folders, after the number of objects was typed."""
    store, sources, selection = screen.store, screen.targets, screen.model.selection
    if store is None or not sources:
        return
    totals = await _count_all(screen, store, sources)
    if totals is None:
        return
    try:
        note = _UNDO_NOTES[await asyncio.to_thread(versioning, store)]
    except ConsoleError:
        note = "Could not read the bucket's versioning state; assume this cannot be undone."
    amount = f"{counted(totals.objects, 'object')}, {size(totals.bytes)}"
    text = f"{amount}, in {safe_text(store.uri())}:\n{_names(sources)}\n\n{note}"
    dialog = TypedConfirmScreen("Delete", text, word=f"delete {totals.objects}", button="Delete")
    if await screen.ask(dialog):
        _run_on(screen, selection, Delete(store, sources))


async def _count_all(screen: Browser, store: ObjectStore, sources: Sequence[ObjectOrPrefix]) -> UsageTotals | None:
    """Objects and bytes, counted by a job where there are folders; None where that is cancelled or fails."""
    objects = [source for source in sources if isinstance(source, ObjectSummary)]
    if len(objects) == len(sources):
        return UsageTotals(objects=len(objects), bytes=sum(source.size for source in objects))
    job = Usage(store, sources)
    screen.run_job(job, announced=False)
    await job_ended(job)
    return job.totals if job.state is JobState.DONE else None


@work(exclusive=True, group="dialog", exit_on_error=False)
async def copy(screen: Browser) -> None:
    """Copy the selected objects and folders inside the bucket, on the server."""
    await _copy_or_rename(screen, move=False)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def rename(screen: Browser) -> None:
    """Rename or move the selected objects and folders, on the server."""
    await _copy_or_rename(screen, move=True)


async def _copy_or_rename(screen: Browser, *, move: bool) -> None:
    store, sources, base, selection = screen.store, screen.targets, screen.model.rows.base, screen.model.selection
    if store is None or not sources:
        return
    verb = "Rename" if move else "Copy"
    question = f"{verb} {_label(sources)} into this folder of the bucket:"
    if len(sources) == 1:
        base = key_of(sources[0])
        question = f"{verb} {_label(sources)} to this name in the bucket:"

    def make(text: str) -> Copy:
        return Copy(store, sources, base, _target_of(sources, typed_key(store, text)), move=move)

    answer = await screen.ask(PromptScreen(verb, question, base, check=make))
    if answer:
        _run_on(screen, selection, make(answer))


def _target_of(sources: Sequence[ObjectOrPrefix], text: str) -> str:
    """What the typed name means: a folder's, and that for several sources, ends in a slash; an object goes into one."""
    if len(sources) == 1 and isinstance(sources[0], ObjectSummary):
        return text + sources[0].key.rpartition("/")[2] if text.endswith("/") else text
    return text if not text or text.endswith("/") else f"{text}/"


def _run_on(screen: Browser, selection: Selection, job: Job, report: Callable[[], None] | None = None) -> None:
    """Starts a job on what was selected, and lists again after it; what is selected meanwhile stays selected."""

    def finished(_: Job) -> None:
        screen.model.refresh()
        if report is not None and job.state is JobState.DONE:
            report()

    selection.clear()
    screen.table.refresh()
    screen.run_job(job, finished)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def restore(screen: Browser) -> None:
    """Restore the archived objects of the selection, after a question where there may be many."""
    store, sources, selection = screen.store, screen.targets, screen.model.selection
    if store is None or not sources:
        return
    classes = {source.storage_class for source in sources if isinstance(source, ObjectSummary)}
    whole = all(isinstance(source, ObjectSummary) for source in sources)
    tier = RestoreTier.STANDARD
    # One Archive object costs little and takes a minute; for others there is something to decide.
    if not (len(sources) == 1 and whole and classes.isdisjoint(RESTORE_TIERS)):
        answer = await screen.ask(_restore_question(sources))
        if not answer:
            return
        tier = RestoreTier(answer)
    job = Restore(store, sources, tier=tier)
    _run_on(screen, selection, job, lambda: screen.notify(_restore_result(job), markup=False, timeout=8))


def _restore_question(sources: Sequence[ObjectOrPrefix]) -> ConfirmScreen:
    lines = "\n".join(
        f"{storage_class}: " + ", ".join(f"{tier.value} {time}" for tier, time in tiers.items())
        for storage_class, tiers in RESTORE_TIERS.items()
    )
    return ConfirmScreen(
        "Restore",
        "Restore all archived objects in this selection for 1 day? OSS bills the retrieved gigabytes (Expedited costs "
        "the most, Bulk the least), each request, and the readable copies for their day.\n"
        f"Archive: {restore_time('Archive', RestoreTier.STANDARD)}, without a priority.\n{lines}\n{_names(sources)}",
        (
            Choice("", "Cancel"),
            Choice(RestoreTier.STANDARD.value, "Standard", "warning"),
            Choice(RestoreTier.EXPEDITED.value, "Expedited", "warning"),
            Choice(RestoreTier.BULK.value, "Bulk", "warning"),
        ),
    )


def _restore_result(job: Restore) -> str:
    if not job.requested and not job.in_progress:
        return "Nothing here is archived."
    known = f" ({job.in_progress:,} more already in progress)" if job.in_progress else ""
    requested = counted(job.requested, "object")
    times = "; ".join(f"{name}: readable {restore_time(name, job.tier)}" for name in sorted(job.classes))
    return f"Restore requested for {requested}{known}. {times}. Press r to refresh."


# Addresses


@work(exclusive=True, group="dialog", exit_on_error=False)
async def addresses(screen: Browser) -> None:
    """Copy URI, key, URL or presigned URL; the text shows, too, as not every terminal sets the clipboard."""
    store, row = screen.store, screen.table.cursor_row
    if store is None or row is None:
        return
    key = screen.table.view.rows.key(row)
    choices = [("URI", store.uri(key)), ("key", key), ("URL", store.url(key))]
    if not key.endswith("/"):
        choices += await screen.request(lambda: _signed(store, key)) or []
    rows = [Line((f" {name:<34}", "dim"), (safe_text(text), "text")) for name, text in choices]
    answer = await screen.ask(ListScreen("Copy an address", rows))
    if answer:
        name, text = choices[answer[1]]
        screen.app.copy_to_clipboard(text)
        note = (
            "Sent to the terminal's clipboard (OSC 52). If it does not arrive: select it here with shift-drag; "
            "tmux needs `set -g set-clipboard on`."
        )
        await screen.ask(TextScreen(name, safe_text(text), note, working_folder() / "oss-address.txt"))


def _signed(store: ObjectStore, key: str) -> list[tuple[str, str]]:
    """Presigned URLs with their names. An internal endpoint's does not work where a browser usually is."""
    end = store.credentials_end()
    left = _URL_LIFE_S if end is None else max(1, min(_URL_LIFE_S, int(end.timestamp() - time.time())))
    time_left = "an hour" if left == _URL_LIFE_S else duration(left)
    signed = presigned_url(store, key, left)
    if not (public := public_endpoint(store.endpoint)):
        return [(f"presigned URL, valid for {time_left}", signed)]
    outside = presigned_url(store, key, left, endpoint=public)
    return [(f"presigned, {time_left}, from anywhere", outside), (f"presigned, {time_left}, in the region", signed)]


# Counting, checking, images


def count(screen: Browser) -> None:
    """Count objects and bytes below the selection; the counts show while the job runs."""
    sources = screen.targets
    if screen.store is None or not sources:
        return
    job = Usage(screen.store, sources)
    if len(sources) == 1:
        screen.usage = (key_of(sources[0]), job)

    screen.run_job(job)


def check_manifest(screen: Browser) -> None:
    """Compare the manifest under the cursor with the bucket listing."""
    from ossconsole.dataset.contents import ManifestCheck  # it loads PIL

    detail = screen.detail
    if screen.store is None or detail is None or not isinstance(detail.content, Manifest):
        return

    def finished(job: Job) -> None:
        if isinstance(job, ManifestCheck):
            detail.findings = job.findings
            screen.post_message(DetailRead(detail))
            if screen.detail is detail:
                screen.show_pane(True, focus=False)

    screen.run_job(ManifestCheck(screen.store, detail.key.rpartition("/")[0], detail.content), finished)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def image(screen: Browser) -> None:
    """Show the sample or image under the cursor over the whole screen, in full resolution."""
    store, detail = screen.store, screen.detail
    if store is None or detail is None or not isinstance(detail.content, ImageContent):
        return
    shown = detail.content.image
    if shown.is_part and detail.info is not None and detail.info.size <= MAX_SAMPLE_BYTES:
        shown = await screen.request(lambda: show_image(store.get(detail.key))) or shown
    await screen.ask(ImageScreen(safe_text(detail.key), shown.pixels))


def images(screen: Browser) -> None:
    """Show a sheet of the first images of the folder under the cursor, or of this folder."""
    detail = screen.detail
    if screen.store is None or detail is None:
        return
    if not detail.is_folder:
        detail = screen.detail = Detail(screen.model.prefix, is_folder=True)
    detail.loading = True
    screen.show_pane(True, focus=False)
    _read_images(screen, screen.store, detail)


@work(thread=True, group="detail", exclusive=True, exit_on_error=False)
def _read_images(screen: Browser, store: ObjectStore, detail: Detail) -> None:
    try:
        detail.images = folder_images(store, detail.key, screen.index)
        detail.problem = "" if detail.images else "This folder contains no images."
    except ConsoleError as error:
        detail.problem = str(error)
    finally:
        detail.loading = False
        screen.post_message(DetailRead(detail))


# Words


def _label(sources: Sequence[ObjectOrPrefix]) -> str:
    if len(sources) == 1:
        key = key_of(sources[0])
        folder = "/" if key.endswith("/") else ""
        name = safe_text(key.rstrip("/").rpartition("/")[2] + folder)
        return shorten_middle(name, _LABEL_CELLS) if key else "this folder"
    return f"{len(sources):,} selected items"


_LABEL_CELLS = 48  # in a sentence
_NAME_CELLS = 132  # two lines: cut in the middle, different keys would look alike


def _names(sources: Sequence[ObjectOrPrefix]) -> str:
    shown = [f"  {shorten_middle(safe_text(key_of(source)), _NAME_CELLS)}" for source in sources[:6]]
    return "\n".join([*shown, *([f"  and {len(sources) - 6:,} more"] if len(sources) > 6 else [])])
