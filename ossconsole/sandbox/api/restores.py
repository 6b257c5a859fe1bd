"""RestoreObject: an archived object becomes readable after the time that the service documents. It serves tests.

https://help.aliyun.com/en/oss/developer-reference/restoreobject and .../user-guide/restore-objects-for-access. Which
error a number of days out of range gets is not documented; here it is InvalidArgument.
"""

from __future__ import annotations

from ossconsole.sandbox.api.call import Call, Reply
from ossconsole.sandbox.replies import OssError, invalid_argument
from ossconsole.sandbox.request import child_text, children, parse_xml, whole_number

_HOUR_S = 3600.0
_ARCHIVE_S = 60.0
_MAX_DAYS = {"Archive": 7, "ColdArchive": 365, "DeepColdArchive": 365}
# Seconds until the object is readable: the longest that is documented.
_TIERS = {
    "ColdArchive": {"Expedited": 1 * _HOUR_S, "Standard": 5 * _HOUR_S, "Bulk": 12 * _HOUR_S},
    "DeepColdArchive": {"Expedited": 12 * _HOUR_S, "Standard": 48 * _HOUR_S},
}


async def restore(call: Call) -> Reply:
    """RestoreObject: 202 where the object was archived, 200 where it is readable already, 409 in between."""
    version_id = call.query.get("versionId", "")
    stored = call.store.version(call.bucket, call.object_key, version_id)
    storage_class = stored.attributes.storage_class
    if storage_class not in _MAX_DAYS:
        raise OssError("OperationNotSupported", fields={"ObjectName": stored.key})
    days, tier = _wanted(await call.xml_body(), storage_class)
    wait_s = _TIERS[storage_class][tier] if tier else _ARCHIVE_S
    fresh = call.store.restore(call.bucket, stored, days=days, wait_s=wait_s, version_id=version_id)
    return Reply(202 if fresh else 200, {"x-oss-object-restore-priority": tier} if tier else {})


def _wanted(body: bytes, storage_class: str) -> tuple[int, str]:
    """Days and tier ("" for Archive, which has none). An empty body stands for one day and the usual tier."""
    tiers = _TIERS.get(storage_class, {})
    usual = "Standard" if tiers else ""
    if not body:
        return 1, usual
    root = parse_xml(body, "RestoreRequest")
    text = child_text(root, "Days")
    days = whole_number(text)
    if days is None:
        raise OssError("MalformedXML", "Days must be a whole number.")
    if not 1 <= days <= _MAX_DAYS[storage_class]:
        raise invalid_argument(f"Days must be 1 to {_MAX_DAYS[storage_class]} for {storage_class}.", "Days", text)
    parameters = next(children(root, "JobParameters"), None)
    if parameters is None:
        return days, usual
    if not tiers:
        raise OssError("MalformedXML", "JobParameters are for Cold Archive and Deep Cold Archive only.")
    tier = child_text(parameters, "Tier", usual)
    if tier not in tiers:
        raise invalid_argument(f"{storage_class} has no such tier.", "Tier", tier, ec="0016-00000703")
    return days, tier
