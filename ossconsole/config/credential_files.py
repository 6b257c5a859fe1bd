"""The credential files of other tools: the connector's JSON, ossutil's INI, the aliyun CLI's JSON."""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.credentials import Credentials
from ossconsole.config.decoding import decode_json
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import read_text, write_private
from ossconsole.config.paths import short_path
from ossconsole.config.secret import Secret

_EXPIRATION_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_ALIYUN_MODES = {"AK", "StsToken", ""}


def connector_file() -> Path:
    """The file the connector reads by itself when it runs as root."""
    return Path.home() / ".alibabacloud" / "credentials"


def ossutil_file(environ: Mapping[str, str] = os.environ) -> Path:
    return Path(environ.get("OSS_CONFIG_FILE") or Path.home() / ".ossutilconfig")


def aliyun_file() -> Path:
    return Path.home() / ".aliyun" / "config.json"


class _ConnectorDocument(msgspec.Struct, rename="pascal"):
    access_key_id: str
    access_key_secret: str
    security_token: str = ""
    expiration: str = ""


def read_connector_file(path: Path) -> Credentials | None:
    """None where there is no file. Raises SettingsError when it is not what the connector reads."""
    text = read_text(path)
    if text is None:
        return None
    try:
        found: _ConnectorDocument = decode_json(text, _ConnectorDocument)
        expiration = parse_expiration(found.expiration)
    except (msgspec.DecodeError, ValueError):
        raise _bad(path, "it needs AccessKeyId, AccessKeySecret, and Expiration as 2030-01-31T08:00:00Z") from None
    return _credentials(
        found.access_key_id,
        found.access_key_secret,
        found.security_token,
        expiration,
        source=f"connector file {short_path(path)}",
    )


def write_connector_file(credentials: Credentials, path: Path | None = None) -> Path:
    """Writes the pair where the connector reads it, mode 0400, in one step; gives the path. Raises SettingsError."""
    path = path or connector_file()
    document = {
        "AccessKeyId": credentials.access_key_id,
        "AccessKeySecret": credentials.access_key_secret.reveal(),
    }
    if credentials.security_token:
        document["SecurityToken"] = credentials.security_token.reveal()
    if credentials.expiration:
        document["Expiration"] = credentials.expiration.astimezone(timezone.utc).strftime(_EXPIRATION_FORMAT)
    write_private(path, msgspec.json.encode(document) + b"\n", mode=0o400)
    return path


def read_ossutil_file(path: Path, name: str = "") -> Credentials | None:
    """The profile `name`, else `default`, else the section of ossutil 1. None where there is no such profile."""
    text = read_text(path)
    if text is None:
        return None
    sections = _ini_sections(path, text)
    wanted = [_plain(f"profile{name}"), _plain(name)] if name else ["default", "credentials"]
    section = next((sections[key] for key in wanted if key in sections), None)
    if section is None or not section.get("accesskeyid"):
        return None
    return _credentials(
        section["accesskeyid"],
        section.get("accesskeysecret", ""),
        section.get("ststoken", ""),
        None,
        source=f"ossutil {name or 'default'} ({short_path(path)})",
    )


def read_aliyun_file(path: Path, name: str = "") -> Credentials | None:
    """The profile `name`, else the current one; None where there is none, or it holds no key pair."""
    text = read_text(path)
    if text is None:
        return None
    current, profiles = _aliyun_profiles(path, text)
    chosen = name or current
    found = profiles.get(chosen)
    if found is None or found.get("mode", "AK") not in _ALIYUN_MODES or not found.get("access_key_id"):
        return None
    return _credentials(
        str(found["access_key_id"]),
        str(found.get("access_key_secret", "")),
        str(found.get("sts_token", "")),
        None,
        source=f"aliyun CLI {chosen} ({short_path(path)})",
    )


def ossutil_names(path: Path) -> list[str]:
    """The names of the profiles in the file, without `default`; empty where there is no file."""
    text = read_text(path)
    names = _ini_parser(path, text).sections() if text is not None else []
    return [name.split(maxsplit=1)[1] for name in names if name.lower().startswith("profile ")]


def aliyun_names(path: Path) -> list[str]:
    """The names of the profiles in the file; empty where there is no file."""
    text = read_text(path)
    return list(_aliyun_profiles(path, text)[1]) if text is not None else []


def parse_expiration(text: str) -> datetime | None:
    """None for "". Raises ValueError unless it is `YYYY-MM-DDTHH:MM:SSZ`."""
    return datetime.strptime(text, _EXPIRATION_FORMAT).replace(tzinfo=timezone.utc) if text else None


def loose_mode(path: Path) -> int | None:
    """The file's permission bits when others than the owner have any, else None."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else None


def _credentials(key_id: str, key_secret: str, token: str, expiration: datetime | None, *, source: str) -> Credentials:
    if not key_id or not key_secret:
        raise SettingsError(f"{source}: the AccessKey ID or secret is empty.", remedy="Enter the key pair again.")
    return Credentials(key_id, Secret(key_secret), Secret(token) if token else None, expiration, source)


def _aliyun_profiles(path: Path, text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the current profile, and all by name."""
    try:
        document: Any = decode_json(text)
        profiles = {str(profile["name"]): profile for profile in document["profiles"]}
        return str(document.get("current") or "default"), profiles
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        raise _bad(path, "it holds no list of profiles") from None


def _ini_sections(path: Path, text: str) -> dict[str, dict[str, str]]:
    """Sections and keys by their plain names: ossutil takes any case, and `-` or `_` between words."""
    parser = _ini_parser(path, text)
    return {
        _plain(section): {_plain(key): value.strip() for key, value in parser.items(section)}
        for section in parser.sections()
    }


def _ini_parser(path: Path, text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="\0none")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise _bad(path, "it is not ossutil's INI format") from None
    return parser


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _bad(path: Path, why: str) -> SettingsError:
    # Never with the parser's own message: it may quote a line that holds a secret.
    return SettingsError(f"{path} cannot be used: {why}.", remedy="Correct the file, or enter the key pair on Setup.")
