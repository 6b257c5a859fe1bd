"""Work on objects: download, delete, copy, rename, restore, lend out, count, check; each a job that can be watched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.contents import MAX_SAMPLE_BYTES, ImageContent, ManifestCheck, folder_images, show_image
from ossconsole.dataset.manifest import Manifest
from ossconsole.storage.jobs.actions import (
    Copy,
    Delete,
    ObjectOrPrefix,
    Restore,
    Usage,
    UsageTotals,
    Versioning,
    key_of,
    presigned_url,
    versioning,
)
from ossconsole.storage.jobs.download import Download, Existing, local_component
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.multipart import UnfinishedUpload, abort_upload, list_uploads
from ossconsole.storage.objects import ObjectSummary
from ossconsole.tui.browse.base import BrowseBase, DetailRead
from ossconsole.tui.browse.detail import Detail
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import (
    Choice,
    ConfirmScreen,
    InputDialog,
    ListDialog,
    PictureScreen,
    TextDialog,
    TypedConfirm,
)
from ossconsole.tui.kit.text import Line, moment, size

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_FOLDERS = "download"
_URL_LIFE_S = 3600
_UNDONE = {
    Versioning.NEVER: "This cannot be undone.",
    Versioning.ENABLED: "The bucket keeps versions: what is deleted stays as a version, and is paid for.",
    Versioning.SUSPENDED: "The bucket keeps no new versions: older ones stay, what is deleted now cannot be undone.",
}


class Working(BrowseBase):
    """Actions that take time, and those that change the bucket."""

    def _refresh_after(self, _: Job) -> None:
        self.model.selection.clear()
        self.model.refresh()

    # Download

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_download(self) -> None:
        store, sources, base = self.store, self.meant(), self.model.rows.base
        if store is None or not sources:
            return
        known = memory.recall(_FOLDERS, store.profile.name).get("folder") or str(Path.cwd())
        answer = await self.app.push_screen_wait(
            InputDialog(
                "Download", f"{_what(sources)} into this folder of this machine:", str(known), check=_check_folder
            )
        )
        if not answer:
            return
        folder, existing = _folder(answer), Existing.KEEP
        if await asyncio.to_thread(_any_there, folder, sources, base):
            choice = await self.app.push_screen_wait(_existing_question(folder))
            if not choice:
                return
            existing = Existing(choice)
        self.console.remember(_FOLDERS, store.profile.name, {"folder": str(folder)})
        self.run_job(Download(store, sources, base, folder, existing=existing))

    # Delete, copy, rename

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_delete(self) -> None:
        store, sources = self.store, self.meant()
        if store is None or not sources:
            return
        totals = await self._counted(store, sources)
        if totals is None:
            return
        try:
            note = _UNDONE[await asyncio.to_thread(versioning, store)]
        except ConsoleError:
            note = "Whether the bucket keeps versions was not told: take it that this cannot be undone."
        amount = f"{counted(totals.objects, 'object')}, {size(totals.bytes)}"
        text = f"{amount}, in {safe_text(store.uri())}:\n{_names(sources)}\n\n{note}"
        if await self.app.push_screen_wait(TypedConfirm("Delete", text, f"delete {totals.objects}")):
            self.run_job(Delete(store, sources), self._refresh_after)

    async def _counted(self, store: ObjectStore, sources: Sequence[ObjectOrPrefix]) -> UsageTotals | None:
        """How much it is; None where counting was cancelled or failed."""
        if all(isinstance(source, ObjectSummary) for source in sources):
            found = [source for source in sources if isinstance(source, ObjectSummary)]
            return UsageTotals(objects=len(found), bytes=sum(source.size for source in found))
        job = Usage(store, sources)
        self.run_job(job)
        await asyncio.to_thread(job.wait)
        return job.totals if job.state is JobState.DONE else None

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_copy(self) -> None:
        await self._copy_or_rename(move=False)

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_rename(self) -> None:
        await self._copy_or_rename(move=True)

    async def _copy_or_rename(self, *, move: bool) -> None:
        store, sources, base = self.store, self.meant(), self.model.rows.base
        if store is None or not sources:
            return
        verb = "Rename" if move else "Copy"
        if len(sources) == 1:
            base = key_of(sources[0])
            question = f"{verb} {_what(sources)} to this name in the bucket:"
        else:
            question = f"{verb} {_what(sources)} into this folder of the bucket:"

        def check(text: str) -> None:
            Copy(store, sources, base, text, move=move)

        answer = await self.app.push_screen_wait(InputDialog(verb, question, base, check=check))
        if answer:
            self.run_job(Copy(store, sources, base, answer, move=move), self._refresh_after)

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_restore(self) -> None:
        """Asks for the archived objects among what is meant; where that may be many, after asking the user."""
        store, sources = self.store, self.meant()
        if store is None or not sources:
            return
        one = len(sources) == 1 and isinstance(sources[0], ObjectSummary)
        if one or await self.app.push_screen_wait(_restore_question(sources)):
            self.run_job(Restore(store, sources), self._restore_asked)

    def _restore_asked(self, job: Job) -> None:
        self._refresh_after(job)
        if isinstance(job, Restore) and job.state is JobState.DONE:
            self.notify(_restore_words(job), markup=False, timeout=8)

    # Addresses

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_addresses(self) -> None:
        """Copies the URI, the key, the URL or a presigned URL, and shows it in case the terminal did not take it."""
        store, row = self.store, self.table.current
        if store is None or row is None:
            return
        key = self.table.view.rows.key(row)
        choices = [("URI", store.uri(key)), ("key", key), ("URL", store.url(key))]
        if not key.endswith("/"):
            signed = await self.behind(lambda: presigned_url(store, key, _URL_LIFE_S))
            if signed is not None:
                choices.append(("presigned URL, good for an hour", signed))
        rows = [Line((f" {name:<33}", "dim"), (safe_text(text), "text")) for name, text in choices]
        answer = await self.app.push_screen_wait(ListDialog("Copy an address", rows))
        if answer:
            name, text = choices[answer[1]]
            self.app.copy_to_clipboard(text)
            note = (
                "Sent to the terminal's clipboard (OSC 52). If nothing arrives: shift-drag selects it here; "
                "tmux needs `set -g set-clipboard on`."
            )
            await self.app.push_screen_wait(TextDialog(name, safe_text(text), note, Path.cwd() / "oss-address.txt"))

    # Counting, checking, looking

    def action_count(self) -> None:
        """Counts what is in the folder under the cursor, or in the chosen ones, while it can be watched."""
        sources = self.meant()
        if self.store is None or not sources:
            return
        job = Usage(self.store, sources)
        row = self.table.current
        if row is not None:
            self.usage = (self.table.view.rows.key(row), job)
        self.run_job(job, self._counted_all)

    def _counted_all(self, job: Job) -> None:
        if isinstance(job, Usage) and job.state is JobState.DONE:
            words = f"{job.title}: {counted(job.totals.objects, 'object')}, {size(job.totals.bytes)}"
            self.notify(words, markup=False, timeout=8)

    def action_check_manifest(self) -> None:
        """Compares the manifest under the cursor with the listing."""
        detail = self.detail
        if self.store is None or detail is None or not isinstance(detail.content, Manifest):
            return

        def show(job: Job) -> None:
            if isinstance(job, ManifestCheck):
                detail.findings = job.findings
                self.post_message(DetailRead(detail))

        self.run_job(ManifestCheck(self.store, detail.key.rpartition("/")[0], detail.content), show)

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_picture(self) -> None:
        """The sample or image under the cursor over the whole screen; an image that was read in part is read whole."""
        store, detail = self.store, self.detail
        if store is None or detail is None or not isinstance(detail.content, ImageContent):
            return
        picture = detail.content.image
        if picture.is_part and detail.info is not None and detail.info.size <= MAX_SAMPLE_BYTES:
            picture = await self.behind(lambda: show_image(store.get(detail.key))) or picture
        await self.app.push_screen_wait(PictureScreen(safe_text(detail.key), picture.pixels))

    def action_pictures(self) -> None:
        """A sheet of the first pictures of the folder under the cursor, or of this folder."""
        detail = self.detail
        if self.store is None or detail is None:
            return
        if not detail.is_folder:
            detail = Detail(self.model.prefix, is_folder=True)
            self.detail = detail
        detail.loading = True
        self._read_pictures(self.store, detail)

    @work(thread=True, group="detail", exclusive=True, exit_on_error=False)
    def _read_pictures(self, store: ObjectStore, detail: Detail) -> None:
        try:
            pictures: list[ImageContent] = folder_images(store, detail.key, self.index)
            detail.pictures = pictures
            detail.problem = "" if pictures else "There are no pictures directly in this folder."
        except ConsoleError as error:
            detail.problem = str(error)
        finally:
            detail.loading = False
            self.post_message(DetailRead(detail))

    # Unfinished uploads and jobs

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_uploads(self) -> None:
        """The unfinished multipart uploads below this prefix, which can be aborted."""
        store, prefix = self.store, self.model.prefix
        if store is None:
            return
        found = await self.behind(lambda: list(list_uploads(store, prefix)))
        if not found:
            if found is not None:
                self.notify("No unfinished uploads here.", timeout=3)
            return
        rows = [
            Line(
                (f" {moment(u.begun)}  {counted(u.parts, 'part'):>10} {size(u.bytes):>9}  ", "dim"),
                (safe_text(u.key), "text"),
            )
            for u in found
        ]
        writable = not self.services.readonly
        hint = "x aborts one, X all" if writable else "read-only"
        answer = await self.app.push_screen_wait(
            ListDialog("Unfinished uploads", rows, hint=hint, keys="xX" if writable else "")
        )
        if not answer or answer[0] == "enter":
            return
        doomed = found if answer[0] == "X" else [found[answer[1]]]
        amount = f"{counted(len(doomed), 'upload')}, {size(sum(upload.bytes for upload in doomed))}"
        text = f"{amount}. The program that writes them will fail."
        if await self.app.push_screen_wait(TypedConfirm("Abort uploads", text, f"abort {len(doomed)}")):
            aborted = await self.behind(lambda: _abort(store, doomed))
            if aborted is not None:
                self.notify(f"{counted(aborted, 'upload')} aborted.", timeout=4)

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_jobs(self) -> None:
        """All jobs: cancel one, do one again, read what failed."""
        if not self.jobs:
            self.notify("No jobs.", timeout=3)
            return
        jobs = list(reversed(self.jobs))
        rows = [Line((f" {job.state:<10}", "dim"), (job.title, "text")) for job in jobs]
        answer = await self.app.push_screen_wait(
            ListDialog("Jobs", rows, hint="x cancels · a does it again · enter shows failures", keys="xa")
        )
        if not answer:
            return
        job = jobs[answer[1]]
        if answer[0] == "x":
            job.cancel()
        elif answer[0] == "a" and isinstance(job, Download) and not job.alive:
            self.run_job(job.retry())
        elif answer[0] == "enter" and job.failures:
            text = "\n".join(safe_text(failure.reason) for failure in job.failures[:1000])
            await self.app.push_screen_wait(TextDialog("Failures", text, job.title, Path.cwd() / "oss-failures.txt"))


def _abort(store: ObjectStore, uploads: Sequence[UnfinishedUpload]) -> int:
    for upload in uploads:
        abort_upload(store, upload)
    return len(uploads)


def _restore_question(sources: Sequence[ObjectOrPrefix]) -> ConfirmScreen:
    return ConfirmScreen(
        "Restore",
        f"Restore every archived object of these for a day? OSS charges for each gigabyte.\n{_names(sources)}",
        (Choice("", "Back"), Choice("go", "Restore", "warning")),
    )


def _restore_words(job: Restore) -> str:
    if not job.requested and not job.in_progress:
        return "Nothing of it is archived: it can be read as it is."
    before = f"; for {job.in_progress:,} more that was done before and is under way" if job.in_progress else ""
    return f"Restore of {counted(job.requested, 'object')} asked for{before}. It takes minutes to hours: r looks again."


def _what(sources: Sequence[ObjectOrPrefix]) -> str:
    if len(sources) == 1:
        return safe_text(key_of(sources[0]).rstrip("/").rpartition("/")[2]) or "this folder"
    return f"{len(sources):,} chosen items"


def _names(sources: Sequence[ObjectOrPrefix]) -> str:
    shown = [f"  {safe_text(key_of(source))[:68]}" for source in sources[:6]]
    return "\n".join([*shown, *([f"  and {len(sources) - 6:,} more"] if len(sources) > 6 else [])])


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _any_there(folder: Path, sources: Sequence[ObjectOrPrefix], base: str) -> bool:
    return any((folder / local_component(_top(source, base))).exists() for source in sources)


def _top(source: ObjectOrPrefix, base: str) -> str:
    return key_of(source)[len(base) :].split("/", maxsplit=1)[0]


def _check_folder(text: str) -> None:
    path = _folder(text)
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not text.strip() or not nearest.is_dir():
        raise ConsoleError(f"{path} is no folder.")


def _existing_question(folder: Path) -> ConfirmScreen:
    return ConfirmScreen(
        "Files are there already",
        f"Some of it is in {folder} already. What is the same (size and time, or CRC64) is never fetched again. "
        "What differs can stay, be replaced, or the new one gets another name.",
        (
            Choice("", "Back"),
            Choice(Existing.KEEP.value, "Keep mine"),
            Choice(Existing.RENAME.value, "Rename new"),
            Choice(Existing.REPLACE.value, "Replace", "warning"),
        ),
    )
