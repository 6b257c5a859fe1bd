"""The connector's config.json, in the console's own folder: every key with default and meaning.

Keys and defaults are those of the OSS Connector for AI/ML documentation, and of osstorchconnector 1.2.3 for
undocumented keys; but a reader fetches more in parallel, and the log level is higher.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import config_dir, decode_json, logs_dir, read_text, write_private

SYSTEM_CONNECTOR_CONFIG = Path("/etc/oss-connector/config.json")
"""The path in the connector's documentation; written only on request."""


class ConnectorKey(msgspec.Struct, frozen=True):
    """One setting. `name` is its dotted path in the file; with `default` None it is left out of the file.

    `low` and `high` bound numbers, inclusively.
    """

    name: str
    default: int | bool | str | None
    meaning: str
    low: int = 0
    high: int = 0

    @property
    def type(self) -> type:
        """The type of its values: int, bool or str."""
        return str if self.default is None else type(self.default)


def _count(name: str, default: int, meaning: str, high: int = 4096) -> ConnectorKey:
    return ConnectorKey(name, default, meaning, low=1, high=high)


QUIET_LOG_LEVEL = 2
"""The lowest level without AccessKey IDs in the connector's log: 1.2.3 logs them in full at info, whenever it fetches
credentials."""

PREFETCH_CONCURRENCY = 64
"""The connector's default is 24: with 35 ms to the first byte, one reader process got 340 samples/s of 150 kB with 24,
and with 64 the endpoint's maximum of 990 (`python -m tests.benchmarks.bench_loader`)."""

CONNECTOR_KEYS = (
    ConnectorKey("logLevel", QUIET_LOG_LEVEL, "0 debug, 1 info (both write AccessKey IDs), 2 warning, 3 error", high=3),
    ConnectorKey("logPath", None, "log file; the reader's number is appended to its name"),
    ConnectorKey("auditPath", None, "file for slow requests; empty for none"),
    _count("datasetConfig.prefetchConcurrency", PREFETCH_CONCURRENCY, "parallel reads of one reader process"),
    _count("datasetConfig.prefetchWorker", 2, "threads of one reader process", 256),
    ConnectorKey("datasetConfig.enableFastList", False, "list a prefix in parallel"),
    _count("datasetConfig.listConcurrency", 16, "parallel listings, with enableFastList"),
    _count("datasetConfig.listWorker", 1, "threads that list, with enableFastList", 256),
    _count("datasetConfig.prefetchMB", 32, "MiB read ahead (undocumented)", 65536),
    _count("datasetConfig.prefetchUnitMB", 16, "MiB of one read-ahead request (undocumented)", 65536),
    ConnectorKey("datasetConfig.enableBatchGet", False, "read several objects in one request (undocumented)"),
    _count("datasetConfig.batchGetSize", 4, "objects of one such request (undocumented)"),
    _count("checkpointConfig.prefetchConcurrency", 24, "parallel reads of a checkpoint"),
    _count("checkpointConfig.prefetchWorker", 4, "threads that read a checkpoint", 256),
    _count("checkpointConfig.uploadConcurrency", 64, "parallel parts of a checkpoint's upload"),
)
_BY_NAME = {key.name: key for key in CONNECTOR_KEYS}
_SECTIONS = {name.partition(".")[0] for name in _BY_NAME if "." in name}

ConnectorValues = dict[str, int | bool | str]
"""Values by dotted name; a missing key has the connector's default."""


def connector_config_path() -> Path:
    """The file to pass to the connector; `checked_connector_config` creates it."""
    return config_dir() / "connector.json"


def checked_connector_config() -> Path:
    """The validated file to pass to the connector; created with defaults where it is missing. Raises SettingsError."""
    path = connector_config_path()
    if read_text(path) is None:
        save_connector_config({})
    else:
        load_connector_config(path)
    return path


def load_connector_config(path: Path | None = None) -> ConnectorValues:
    """The values in the file by dotted name. Raises SettingsError with the file and the key."""
    path = path or connector_config_path()
    text = read_text(path)
    if text is None:
        return {}
    try:
        document: Any = decode_json(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is not JSON: {error}.", remedy=f"Correct it, or remove it: rm {path}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} is not a JSON object.", remedy=f"Remove it: rm {path}")
    try:
        return checked_connector_values(_flattened(document))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", remedy=error.remedy) from error


def save_connector_config(values: ConnectorValues, path: Path | None = None) -> Path:
    """Validates and writes the values, with the defaults of documented keys; returns the path. Raises SettingsError."""
    path = path or connector_config_path()
    full = default_connector_values() | checked_connector_values(values)
    document: dict[str, Any] = {}
    for name, value in full.items():
        section, _, leaf = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[leaf] = value
    write_private(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return path


def default_connector_values() -> ConnectorValues:
    """The values of a new file: the documented keys, and a log in our own folder."""
    documented = [key for key in CONNECTOR_KEYS if "undocumented" not in key.meaning]
    defaults = {key.name: key.default for key in documented if key.default is not None}
    return {"logPath": str(logs_dir() / "connector.log"), **defaults}


def checked_connector_values(values: ConnectorValues) -> ConnectorValues:
    """The values without empty strings. Raises SettingsError with the invalid key and the nearest valid one."""
    kept: ConnectorValues = {}
    for name, value in values.items():
        key = _BY_NAME.get(name)
        if key is None:
            close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
            remedy = f"Did you mean {close[0]}?" if close else f"Valid settings: {', '.join(_BY_NAME)}."
            raise SettingsError(f"The connector has no setting {name!r}.", remedy=remedy)
        if type(value) is not key.type:
            raise SettingsError(
                f"{name} must be {_TYPE_NAMES[key.type]}, not {value!r}.", remedy=f"Its meaning: {key.meaning}."
            )
        if isinstance(value, int) and not isinstance(value, bool) and not key.low <= value <= key.high:
            raise SettingsError(
                f"{name} must be {key.low} to {key.high}, not {value}.", remedy=f"Its meaning: {key.meaning}."
            )
        if value != "":
            kept[name] = value
    return kept


_TYPE_NAMES = {int: "a whole number", bool: "true or false", str: "text"}


def _flattened(document: dict[str, Any]) -> ConnectorValues:
    flat: ConnectorValues = {}
    for name, value in document.items():
        if name in _SECTIONS and isinstance(value, dict):
            flat |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            flat[name] = value
    return flat
