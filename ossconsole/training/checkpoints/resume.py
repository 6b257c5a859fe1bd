"""Going on from a checkpoint, to the exact step."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.storage.client import ObjectStore
from ossconsole.training.checkpoints.checkpoint import fetch_uri, stable_key, unpack
from ossconsole.training.compute.model import refuse_not_finite
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.process_group import Ranks
from ossconsole.training.steps import Course

LATEST = "latest"
_MAY_DIFFER = {"run", "sample_format"}


def resume(
    context: RunContext, store: ObjectStore, ranks: Ranks, *, trainer: Trainer, course: Course, about: dict[str, Any]
) -> None:
    """Goes on from the checkpoint that the settings name, or that this run left when torchrun restarted it.

    `about` is what both must have in common. Raises ConsoleError when they have not, or when it is no checkpoint.
    """
    uri = _located(context.settings.resume, store)
    if ranks.place.attempt:
        uri = ranks.share(_own_checkpoint(context, store) if ranks.place.leads else "")[0] or uri
    if not uri:
        return
    state = unpack(fetch_uri(store, uri), uri)
    for name, wanted in about.items():
        if name not in _MAY_DIFFER and state.get(name) != wanted:
            raise ConsoleError(
                f"{uri} was written with {_difference(name, state.get(name), wanted)}.",
                remedy=f"Use the same settings and dataset, or start from its weights: --weights {uri}.",
            )
    if isinstance(state.get("model"), dict):
        refuse_not_finite(state["model"], uri)
    try:
        trainer.load(state)
        course.go_on_from(state)
        context.step = int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        lacking = f" ({error} is missing)" if isinstance(error, KeyError) else ""
        raise ConsoleError(
            f"{uri} does not hold what a run needs to resume{lacking}.",
            remedy=f"Start from its weights: --weights {uri}.",
        ) from error
    context.say(f"Going on after step {context.step} of epoch {course.epoch}, from {uri}.")
    if state["schedule"]["asked"] != context.settings.learning_rate:
        context.say(f"The peak learning rate is now {context.settings.learning_rate:g}.")


def _difference(name: str, found: object, wanted: object) -> str:
    """What a checkpoint was written with, after "written with"."""
    if name == "classes":
        was, has = (len(each) if isinstance(each, Sized) else 0 for each in (found, wanted))
        return f"{counted(was, 'class', 'classes')}; this dataset has {'others' if was == has else has}"
    return f"another {name.replace('_', ' ')} than this run has"


def _located(named: str, store: ObjectStore) -> str:
    """The URI of a checkpoint that is named by its key, by its URI, or as the latest of the profile's prefix."""
    if named == LATEST:
        return store.uri(stable_key(store.profile.checkpoint_prefix))
    return store.uri(named) if named and "://" not in named else named


def _own_checkpoint(context: RunContext, store: ObjectStore) -> str:
    """The newest checkpoint when this run wrote it, else ""."""
    key = stable_key(context.profile.checkpoint_prefix)
    if not store.exists(key):
        return ""
    uri = store.uri(key)
    return uri if unpack(store.get(key), uri).get("run") == context.id else ""
