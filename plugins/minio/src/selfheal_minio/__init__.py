"""A plugin of selfheal for MinIO; see the README beside `src`."""

from __future__ import annotations

from collections.abc import Mapping

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_checks() -> Mapping[str, str]:
    """Offer `minio`; neither it nor the SDK is imported before a service asks for it."""
    return {"minio": "selfheal_minio.checks:MinioCheck"}
