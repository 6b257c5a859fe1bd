"""AdvancedScreen: the settings of an upload that few sources need, such as label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ossconsole.config.profiles import FieldError
from ossconsole.dataset.labels import LabelFiles
from ossconsole.tui.kit.dialogs import Field, FormScreen, Values

_FIELDS = (
    Field(
        "val_labels", "Val labels", "labels of a flat val/: the tutorial's JSON, Kaggle's CSV, or a CSV; empty = found"
    ),
    Field("class_index", "Class index", "the tutorial's class index; none = number only the classes found"),
    Field("val_split", "Held out", "share of each class stored as val/ where the source has none; 0 = none"),
    Field("names", "Names", "encoding of names in an archive that are not UTF-8, such as cp932 or gb18030"),
)


class AdvancedSettings(msgspec.Struct, frozen=True):
    """The fields of `UploadSettings` that the form itself does not have."""

    val_labels: str = ""
    class_index: str = ""
    val_split: float = 0.0
    names: str = ""

    @property
    def label_files(self) -> LabelFiles:
        """The label files of the source."""
        return LabelFiles(val_labels=self.val_labels, class_index=self.class_index)

    def describe(self) -> str:
        """What differs from the defaults; "" where nothing does."""
        parts = [
            f"val labels {self.val_labels}" if self.val_labels else "",
            f"class index {self.class_index}" if self.class_index else "",
            f"{self.val_split:g} held out" if self.val_split else "",
            f"names in {self.names}" if self.names else "",
        ]
        return ", ".join(filter(None, parts))


class AdvancedScreen(FormScreen):
    """Returns AdvancedSettings, or None after Escape."""

    def __init__(self, present: AdvancedSettings) -> None:
        super().__init__("Advanced", save="OK")
        self._present = present

    def fields(self) -> Sequence[Field]:
        """The fields with the present values."""
        values = msgspec.to_builtins(self._present)
        return [replace(field, value=f"{values[field.name]}") for field in _FIELDS]

    def accept(self, values: Values) -> AdvancedSettings:
        """The settings. Raises FieldError."""
        try:
            share = float(values["val_split"] or 0)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise FieldError(
                "val_split", f"{values['val_split']!r} is not a share.", remedy="Enter 0.1, or 0 for none."
            )
        try:
            " ".encode(values["names"] or "utf-8")
        except (LookupError, ValueError):
            raise FieldError(
                "names", f"{values['names']!r} is not an encoding.", remedy="Enter for example cp932 or gb18030."
            ) from None
        return AdvancedSettings(values["val_labels"], values["class_index"], share, values["names"])
