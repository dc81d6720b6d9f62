"""The workload does what a workload must do, against a real systemd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
from tests.stack.systemd import Systemd

from selfheal.plugins import Workload
from selfheal.testing.conformance import WorkloadConformance
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]


class TestSystemd(WorkloadConformance):
    timeout = 5.0
    runs = 10
    inapplicable: ClassVar[Mapping[str, str]] = {
        "make_broken": "it asks systemd by a program, and not by an address",
    }

    @pytest.fixture(autouse=True)
    def _unit(self, systemd: Systemd) -> None:
        systemd.unit("kh-api.service", "/bin/sleep 1000", wanted=True)
        systemd.ask("start", "kh-api.service")

    def make(self) -> Workload:
        return SystemdWorkload(unit="kh-api", settle=0.1)

    def make_absent(self) -> Workload:
        return SystemdWorkload(unit="kh-nobody")
