"""The accelerator on the Setup screen: its panel, its form, and the questions before it is created or changed."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import msgspec

from ossconsole.config.endpoints import candidates, classify, is_zone_of
from ossconsole.config.profiles import FieldError, Profile
from ossconsole.storage.accelerator import (
    MAX_GB,
    MIN_GB,
    ON_READ,
    ON_WRITE,
    AcceleratedPath,
    Accelerator,
    cost_estimate,
    describe_changes,
)
from ossconsole.tui.console import AcceleratorState
from ossconsole.tui.kit.dialogs import Field, FormScreen, Values
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, moment, safe, wrap
from ossconsole.tui.setup.panels import row

_TUTORIAL_GB = 500
_MAX_DIGITS = 9
_KEEP = "keep"
_NEW_POLICIES = (("on first read", ON_READ), ("on write and on first read", ON_WRITE))
_KEPT = ("each path as it is, new paths on first read", _KEEP)
_ALL_POLICIES = (("all on first read", ON_READ), ("all on write and on first read", ON_WRITE))


class AcceleratorForm(FormScreen):
    """Returns the Accelerator to create, or `present` with its changes; fields left as they are change nothing."""

    def __init__(self, profile: Profile, present: Accelerator | None) -> None:
        title = f"Change the accelerator in {present.zone}" if present else "Create an accelerator"
        super().__init__(title, save="Continue")
        self._profile = profile
        self._present = present
        paths = [path.prefix for path in present.paths] if present else [f"{profile.dataset_prefix}/"]
        self._paths = ", ".join(map(_quoted, paths))

    def fields(self) -> Sequence[Field]:
        present = self._present
        sizes = f"{MIN_GB} to {MAX_GB:,} GB, at most one change per hour"
        if present and present.frozen_until > self.console.now:
            sizes = f"the size cannot be changed before {moment(present.frozen_until)}"
        size = Field("quota_gb", "size in GB", sizes, str(present.quota_gb if present else _TUTORIAL_GB))
        paths = Field("paths", "paths", "prefixes to cache, separated by commas; empty = whole bucket", self._paths)
        when = "when an object enters the cache; on read is enough for training"
        if present:
            return [size, paths, Field("policy", "cached", when, _KEEP, (_KEPT, *_ALL_POLICIES))]
        zone = classify(self._profile.accelerated_endpoint or "").zone
        where = f"zone of the GPU instance, such as {zone or f'{self._profile.region}-a'}"
        return [
            Field("zone", "zone", where, zone),
            size,
            paths,
            Field("policy", "cached", when, ON_READ, _NEW_POLICIES),
        ]

    def hint(self, field: Field) -> str:
        """For the size, also its cost."""
        quota = _quota(self.value("quota_gb")) if field.name == "quota_gb" else None
        return f"{field.hint}; {cost_estimate(Accelerator(zone='', quota_gb=quota))}" if quota else field.hint

    def accept(self, values: Values) -> Accelerator:
        """The accelerator. Raises FieldError."""
        text = values["quota_gb"]
        quota = _quota(text)
        if quota is None or not MIN_GB <= quota <= MAX_GB:
            raise FieldError("quota_gb", f"{text!r} is not a valid size.", remedy=f"Enter {MIN_GB} to {MAX_GB:,} GB.")
        present = self._present
        if present is None:
            policy = values["policy"]
            return Accelerator(
                name=f"{self._profile.bucket}_data-acc",
                zone=self._zone(values["zone"]),
                quota_gb=quota,
                paths=tuple(AcceleratedPath(prefix, policy) for prefix in _prefixes(values["paths"], set())),
                policy=policy,
            )
        changed = msgspec.structs.replace(present, quota_gb=quota)
        if values["paths"] != self._paths.strip():
            known = {path.prefix: path for path in present.paths}
            paths = (known.get(prefix, AcceleratedPath(prefix)) for prefix in _prefixes(values["paths"], set(known)))
            changed = msgspec.structs.replace(changed, paths=tuple(paths))
        return changed if values["policy"] == _KEEP else _with_policy(changed, values["policy"])

    def _zone(self, text: str) -> str:
        region, endpoint = self._profile.region, self._endpoint_zone
        if not is_zone_of(text, region):
            problem = f"{text!r} is not a zone of {region}." if text else "The zone is missing."
            raise FieldError("zone", problem, remedy=f"Enter one, such as {self._example_zone}.")
        if endpoint and text != endpoint:
            raise FieldError(
                "zone",
                f"The accelerated endpoint of the profile is that of {endpoint}, not of {text}.",
                remedy=f"Enter {endpoint}, or set the endpoint of {text} first (key e).",
            )
        return text

    @property
    def _endpoint_zone(self) -> str:
        """The zone in the host of the accelerated endpoint, "" where it names none."""
        return classify(self._profile.accelerated_endpoint or "").zone

    @property
    def _example_zone(self) -> str:
        known = (candidate.host.zone for candidate in candidates(self._profile.region) if candidate.host.zone)
        return self._endpoint_zone or next(known, f"{self._profile.region}-a")


def _quota(text: str) -> int | None:
    """A size in GB; None for another text, and for more digits than any size has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _quoted(prefix: str) -> str:
    """As a field of CSV, with quotes where the prefix would otherwise be read as another."""
    plain = prefix == prefix.strip() and not set(prefix) & {",", '"'}
    return prefix if plain else '"{}"'.format(prefix.replace('"', '""'))


def _prefixes(text: str, known: set[str]) -> list[str]:
    """The prefixes of the field, each once; one that is not `known` without blanks and slashes before it.

    Raises FieldError.
    """
    try:
        entries = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise FieldError("paths", f"The paths cannot be read: {error}.", remedy="Enter fewer of them.") from error
    found = [entry if entry in known else entry.strip().lstrip("/") for entry in entries]
    return [prefix for prefix in dict.fromkeys(found) if prefix]


def _with_policy(accelerator: Accelerator, policy: str) -> Accelerator:
    """All its paths with this policy, or the whole bucket: beside paths, the bucket's own has no effect."""
    if not accelerator.paths:
        return msgspec.structs.replace(accelerator, policy=policy)
    paths = tuple(AcceleratedPath(path.prefix, policy) for path in accelerator.paths)
    return msgspec.structs.replace(accelerator, paths=paths)


def creation_question(bucket: str, wanted: Accelerator) -> str:
    """The question before an accelerator is created, with its cost."""
    return (
        f"An accelerator of {wanted.quota_gb:,} GB in {wanted.zone} for oss://{bucket}, caching {wanted.cached_text}.\n"
        f"Billing starts with its creation:\n{cost_estimate(wanted)}."
    )


def change_question(present: Accelerator, wanted: Accelerator) -> str:
    """Old and new value of everything that changes; "" where nothing does."""
    changes = describe_changes(present, wanted)
    return "\n".join([*changes, "", "Everything else stays as it is."]) if changes else ""


def accelerator_text(present: Accelerator) -> str:
    """The accelerator and its cost, and why it cannot be changed here."""
    text = f"{present.name} in {present.zone}, {present.quota_gb:,} GB: {cost_estimate(present)}."
    if present.paths_known:
        return text
    return f"{text}\nOSS did not send its paths. A change here would delete them: change it in the OSS console."


def deletion_question(bucket: str, present: Accelerator) -> str:
    """What is lost, and which cost ends."""
    return (
        f"Deletes the cache of oss://{bucket} in {present.zone}, {present.quota_gb:,} GB, and its paths: "
        f"{present.cached_text}. Billing of about CNY {present.cny_per_hour:.2f} per hour ends. "
        "The objects stay in the bucket."
    )


def accelerator_lines(
    state: AcceleratorState | None, problem: str, glyphs: Glyphs, width: int, *, keys: bool
) -> list[Line]:
    """The accelerator of the bucket; `state` is None before it was read, `keys` says whether c and a can be pressed."""
    if problem:
        return [Line((f" {part}", "warn")) for part in wrap(safe(problem), width - 2)]
    if state is None:
        line = Line((" Not read yet.", "dim"))
        if keys:
            line.add(" Press ", "dim").add("c", "primary").add(" to test, ", "dim").add("a", "primary")
            line.add(" to create or change it.", "dim")
        return [line]
    found = state.accelerator
    others = [f"Also billed: {other.quota_gb:,} GB in {other.zone} ({cost_estimate(other)})." for other in state.others]
    if found is None:
        lines = [Line((" The bucket has none. Press ", "warn"), ("a", "primary"), (" to create one.", "dim"))]
    else:
        lines = [row(label, value, glyphs, width) for label, value in _facts(found)]
    for caution in (*state.accelerator_warnings, *others):
        lines += [Line((f" {part}", "warn")) for part in wrap(f"! {safe(caution)}", width - 2)]
    return lines


def _facts(accelerator: Accelerator) -> list[tuple[str, str]]:
    return [
        ("name", accelerator.name),
        ("zone", accelerator.zone),
        ("size", f"{accelerator.quota_gb:,} GB, documented peak {accelerator.peak_mb_per_s:,.0f} MB/s"),
        ("caches", accelerator.cached_text),
        ("since", moment(accelerator.created) if accelerator.created else "unknown"),
    ]
