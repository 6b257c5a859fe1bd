"""The connector's config.json: every key with default and meaning, kept in the console's own folder.

Keys and defaults are those of the OSS Connector for AI/ML documentation, and of osstorchconnector 1.2.3 for the keys
that the documentation leaves out; but one reader fetches more at once, and the log is quieter.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import config_dir, decode_json, logs_dir, read_text, write_private

SYSTEM_CONNECTOR_CONFIG = Path("/etc/oss-connector/config.json")
"""Where the connector's documentation puts the file; written there only on request."""


class ConnectorKey(msgspec.Struct, frozen=True):
    """One setting. `name` is its dotted path in the file; `default` None means: leave it out of the file.

    `low` and `high` bound numbers, both included.
    """

    name: str
    default: int | bool | str | None
    meaning: str
    low: int = 0
    high: int = 0

    @property
    def type(self) -> type:
        return str if self.default is None else type(self.default)


def _count(name: str, default: int, meaning: str, high: int = 4096) -> ConnectorKey:
    return ConnectorKey(name, default, meaning, low=1, high=high)


QUIET_LOG_LEVEL = 2
"""The lowest level at which the connector's log has no AccessKey ID: 1.2.3 writes it whole at info, whenever it fetches
credentials."""

PREFETCH_CONCURRENCY = 64
"""Where the connector's own default is 24: with 35 ms to the first byte, one reader process got 340 samples/s of 150 kB
with 24 and 990 with 64, which was all that the endpoint gave (`python -m tests.benchmarks.bench_loader`)."""

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
"""Values by dotted name; a key left out has the connector's default."""


def connector_config_path() -> Path:
    """The file to pass to the connector; `checked_connector_config` makes it."""
    return config_dir() / "connector.json"


def checked_connector_config() -> Path:
    """The file to pass to the connector, checked; made with its defaults where there is none. Raises SettingsError."""
    path = connector_config_path()
    if read_text(path) is None:
        save_connector_config({})
    else:
        load_connector_config(path)
    return path


def load_connector_config(path: Path | None = None) -> ConnectorValues:
    """The values in the file by dotted name. Raises SettingsError that names the file and the key."""
    path = path or connector_config_path()
    text = read_text(path)
    if text is None:
        return {}
    try:
        document: Any = decode_json(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is not JSON: {error}.", remedy=f"Correct it, or remove it: rm {path}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} holds no JSON object.", remedy=f"Remove it: rm {path}")
    try:
        return checked_connector_values(_flattened(document))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", remedy=error.remedy) from error


def save_connector_config(values: ConnectorValues, path: Path | None = None) -> Path:
    """Checks and writes the values, with the defaults of the documented keys filled in; gives the path."""
    path = path or connector_config_path()
    full = default_connector_values() | checked_connector_values(values)
    document: dict[str, Any] = {}
    for name, value in full.items():
        section, _, leaf = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[leaf] = value
    write_private(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return path


def default_connector_values() -> ConnectorValues:
    """What a new file holds: the documented keys, and a log in our own folder."""
    documented = [key for key in CONNECTOR_KEYS if not _undocumented(key)]
    defaults = {key.name: key.default for key in documented if key.default is not None}
    return {"logPath": str(logs_dir() / "connector.log"), **defaults}


def checked_connector_values(values: ConnectorValues) -> ConnectorValues:
    """The values without empty texts. Raises SettingsError naming the key that is wrong, and the nearest valid one."""
    kept: ConnectorValues = {}
    for name, value in values.items():
        key = _BY_NAME.get(name)
        if key is None:
            close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
            remedy = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(_BY_NAME)}."
            raise SettingsError(f"The connector has no setting {name!r}.", remedy=remedy)
        if type(value) is not key.type:
            raise SettingsError(f"{name} must be {_WORDS[key.type]}, not {value!r}.", remedy=f"It is: {key.meaning}.")
        if isinstance(value, int) and not isinstance(value, bool) and not key.low <= value <= key.high:
            raise SettingsError(
                f"{name} must be {key.low} to {key.high}, not {value}.", remedy=f"It is: {key.meaning}."
            )
        if value != "":
            kept[name] = value
    return kept


_WORDS = {int: "a whole number", bool: "true or false", str: "text"}


def _undocumented(key: ConnectorKey) -> bool:
    return "undocumented" in key.meaning


def _flattened(document: dict[str, Any]) -> ConnectorValues:
    flat: ConnectorValues = {}
    for name, value in document.items():
        if name in _SECTIONS and isinstance(value, dict):
            flat |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            flat[name] = value
    return flat
