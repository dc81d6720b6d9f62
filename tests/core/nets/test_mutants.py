"""Every wrong core is caught, and the shipped engine is not.

`SELFHEAL_NETS_TABLE=1` casts every net for every mutant and prints the whole table (about five minutes).
"""

from __future__ import annotations

import os

import pytest
from tests.core.nets.mutants import MUTANTS, NETS, Mutant, caught

SHIPPED = Mutant("the shipped engine", ())
WHOLE = os.environ.get("SELFHEAL_NETS_TABLE", "") not in ("", "0")


@pytest.mark.slow
def test_no_net_catches_the_shipped_engine() -> None:
    assert {net: caught(SHIPPED, net) for net in NETS} == dict.fromkeys(NETS)


@pytest.mark.slow
def test_every_wrong_core_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    rows, missed = [], []
    for mutant in MUTANTS:
        nets = tuple(NETS) if WHOLE else (mutant.net,)
        found = {net: caught(mutant, net) for net in nets}
        rows.append([mutant.name, *((found[net] or ("-",))[0] if net in found else "" for net in NETS)])
        if not any(found.values()):
            missed.append(mutant.name)
    with capsys.disabled():
        print(f"\n{'wrong core (seed or place, time)':46}" + "".join(f"{net:>16}" for net in NETS))
        for name, *cells in rows:
            print(f"{name:46}" + "".join(f"{cell:>16}" for cell in cells))
        print(f"{len(rows) - len(missed)} of {len(rows)} caught")
    assert len(rows) >= 40
    assert not missed
