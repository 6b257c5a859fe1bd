"""Profiles for tests that open no bucket."""

from __future__ import annotations

from ossconsole.config.profiles import Profile, checked

HANGZHOU = Profile(
    name="hangzhou",
    region="cn-hangzhou",
    bucket="training-data",
    standard_endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com",
)


def loopback_profile(credentials: str = "auto") -> Profile:
    """A profile with an endpoint on this machine and the given source of credentials."""
    return checked(
        Profile(
            name="a", region="cn-hangzhou", bucket="abc", standard_endpoint="http://127.0.0.1", credentials=credentials
        )
    )
