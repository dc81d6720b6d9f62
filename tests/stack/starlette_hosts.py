"""Applications of several frameworks that mount the HTTP API, as their documentation says; for real servers to serve.

`FLEET_FOLDER` is where the journal lies; with `FORGET` the host is not given the lifespan,
with `OFTEN` people may act often.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.stack.starlette import MANY, PREFIX, Fleet

from selfheal import Supervisor
from selfheal_starlette import recovery_app


def fleet() -> Supervisor:
    """Return the supervisor of this process."""
    return Fleet(Path(os.environ["FLEET_FOLDER"])).supervisor()


def remembered() -> bool:
    """Whether the host is given the lifespan."""
    return "FORGET" not in os.environ


def starlette_app() -> Any:
    """Mount it in Starlette."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    supervisor = fleet()
    app = recovery_app(supervisor, rates=MANY if "OFTEN" in os.environ else None)
    return Starlette(routes=[Mount(PREFIX, app=app)], lifespan=supervisor.lifespan if remembered() else None)


def fastapi_app() -> Any:
    """Mount it in FastAPI."""
    from fastapi import FastAPI

    supervisor = fleet()
    app = FastAPI(lifespan=supervisor.lifespan if remembered() else None)
    app.mount(PREFIX, recovery_app(supervisor))
    return app


def litestar_app() -> Any:
    """Mount it in Litestar."""
    from litestar import Litestar, asgi

    supervisor = fleet()
    mounted = asgi(PREFIX, is_mount=True, copy_scope=True)(recovery_app(supervisor))
    return Litestar(route_handlers=[mounted], lifespan=[supervisor.lifespan] if remembered() else None)


def django_app() -> Any:
    """Put it beside Django, which passes no lifespan on: an outer application has both."""
    django: Any = import_module("django")  # it has no types
    settings: Any = import_module("django.conf").settings
    from starlette.applications import Starlette
    from starlette.routing import Mount

    settings.configure(DEBUG=False, SECRET_KEY="for this test", ROOT_URLCONF="tests.stack.starlette_hosts")
    django.setup(set_prefix=False)
    supervisor = fleet()
    return Starlette(
        routes=[
            Mount(PREFIX, app=recovery_app(supervisor)),
            Mount("/", app=import_module("django.core.asgi").get_asgi_application()),
        ],
        lifespan=supervisor.lifespan if remembered() else None,
    )


urlpatterns: list[Any] = []
"""The addresses of the Django application: it has none."""
