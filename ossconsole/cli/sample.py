"""The sandbox's sample dataset, for commands that are called before anything was uploaded."""

from __future__ import annotations

from ossconsole.cli.options import OpenTarget
from ossconsole.cli.output import say
from ossconsole.config.paths import state_dir

_SIDE = 64  # pixels; what two cores can train on


def fill_with_samples(opened: OpenTarget) -> None:
    """Draws and uploads the sample pictures where the sandbox has no dataset. Raises ConsoleError."""
    from ossconsole.dataset.formats import SampleFormat
    from ossconsole.dataset.manifest import ManifestMissingError, read_manifest
    from ossconsole.dataset.sample_data import make_sample_pictures
    from ossconsole.dataset.settings import UploadSettings
    from ossconsole.dataset.upload import UploadJob
    from ossconsole.storage.client import ObjectStore

    store = ObjectStore(opened.profile, opened.credentials)
    try:
        read_manifest(store, opened.profile.dataset_prefix)
    except ManifestMissingError as error:
        if not error.empty:
            raise
    else:
        return
    finally:
        store.close()
    say("The sandbox is empty: drawing and uploading sample pictures.", err=True)
    source = state_dir() / "sample-pictures"
    make_sample_pictures(source)
    job = UploadJob(
        opened.profile,
        opened.credentials,
        UploadSettings(source=source, format=SampleFormat.IMAGE_U8, size=_SIDE),
    )
    job.start()
    job.wait()
