from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ossconsole.config.connector import (
    CONNECTOR_KEYS,
    ConnectorValues,
    checked_connector_config,
    connector_config_path,
    load_connector_config,
    save_connector_config,
)
from ossconsole.config.errors import SettingsError


def test_the_file_is_made_with_its_defaults(home: Path) -> None:
    path = checked_connector_config()
    document = json.loads(path.read_text())
    assert document["logLevel"] == 2
    assert document["logPath"] == str(home / "state" / "logs" / "connector.log")
    assert "auditPath" not in document
    assert document["datasetConfig"]["prefetchConcurrency"] == 64
    assert document["checkpointConfig"]["uploadConcurrency"] == 64
    assert "prefetchMB" not in document["datasetConfig"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_values_are_saved_and_loaded() -> None:
    values: ConnectorValues = {
        "logLevel": 3,
        "auditPath": "/tmp/audit.log",
        "datasetConfig.enableFastList": True,
        "datasetConfig.prefetchMB": 64,
    }
    path = save_connector_config(values)
    assert checked_connector_config() == path
    loaded = load_connector_config()
    assert values.items() <= loaded.items()
    assert loaded["datasetConfig.prefetchWorker"] == 2


def test_an_empty_text_leaves_the_key_out() -> None:
    save_connector_config({"auditPath": ""})
    assert "auditPath" not in load_connector_config()


@pytest.mark.parametrize(
    ("values", "message", "remedy"),
    [
        ({"datasetConfig.prefetchWorkers": 2}, "no setting", "datasetConfig.prefetchWorker"),
        ({"logLevel": 4}, "0 to 3", "debug"),
        ({"logLevel": True}, "whole number", ""),
        ({"datasetConfig.enableFastList": 1}, "true or false", ""),
        ({"datasetConfig.prefetchWorker": 0}, "1 to 256", ""),
        ({"logPath": 3}, "text", ""),
    ],
)
def test_wrong_values_name_the_key(values: ConnectorValues, message: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        save_connector_config(values)
    assert next(iter(values)) in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("text", ["{", "[]", '{"datasetConfig": {"prefetchWorker": "2"}}', '{"datasetConfig": 1}'])
def test_a_broken_file_is_named(text: str) -> None:
    path = connector_config_path()
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"connector\.json"):
        checked_connector_config()


def test_every_key_has_a_meaning_and_a_valid_default() -> None:
    defaults = {key.name: key.default for key in CONNECTOR_KEYS if key.default is not None}
    save_connector_config({name: value for name, value in defaults.items() if value is not None})
    assert all(key.meaning for key in CONNECTOR_KEYS)
    assert defaults.items() <= load_connector_config().items()
