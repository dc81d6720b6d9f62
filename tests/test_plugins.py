"""Loading: who is let in, what happens to a broken one, who wins a name, and what is never imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from selfheal import loading
from selfheal.core.model import PASSING, CheckResult, Effect, Instance, Run
from selfheal.errors import PluginError
from selfheal.hookspecs import Frontend, hookimpl
from selfheal.loading import BUILTIN, NOT_ALLOWED, NOT_INSTALLED, Plugin, Tables, load_plugins
from selfheal.plugins import ActionContext, CheckContext, Context, HealthCheck, Notifier, Workload


class _Runs:
    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="1", run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None: ...

    async def run(self, context: ActionContext) -> None: ...

    async def send(self, notification: object, context: Context) -> str | None:
        return None

    async def serve(self, supervisor: object) -> None: ...


def a_class(kind: Any, **more: Any) -> type[Any]:
    return attrs.frozen(kw_only=True)(type("Sample", (_Runs,), {"kind": kind, **more}))


def plugin(**hooks: Callable[..., Any]) -> object:
    """Return a plugin object with these hooks, named without their prefix."""
    named = {f"selfheal_{name}": hookimpl(hook) for name, hook in hooks.items()}
    return type("Sample", (), {name: staticmethod(hook) for name, hook in named.items()})()


def only(loaded: Tables) -> Plugin:
    """Return the one plugin that is not ours."""
    (found,) = [one for one in loaded.plugins if one.name != BUILTIN]
    return found


def by_hand(*objects: object) -> Tables:
    return load_plugins((), extra={f"p{number}": one for number, one in enumerate(objects)})


# -- our own ---------------------------------------------------------------------------------------------------------


def test_every_class_of_ours_is_there_and_fits_its_interface() -> None:
    tables = load_plugins(())

    assert [one.name for one in tables.plugins] == [BUILTIN]
    for kind in tables.checks:
        cls = tables.checks[kind]
        assert cls.kind == kind
        assert callable(getattr(cls, "talk", None)) or callable(cls.check)
    assert set(tables.checks) == {"tcp", "http", "redis_ping", "command", "process", "heartbeat"}
    assert {kind: tables.workloads[kind].kind for kind in tables.workloads} == {
        "command": "command",
        "process": "process",
    }
    assert {kind: tables.notifiers[kind].kind for kind in tables.notifiers} == {
        "log": "log",
        "webhook": "webhook",
        "alertmanager": "alertmanager",
    }
    assert tables.actions["http"].kind == "http"


def test_nothing_is_imported_before_it_is_looked_up() -> None:
    program = """
        import sys
        from selfheal.loading import load_plugins
        from selfheal.config import configure
        before = set(sys.modules)
        tables = load_plugins(())
        assert not [m for m in set(sys.modules) - before if m.startswith("selfheal.builtin.")], "at loading"
        tables.checks["heartbeat"]
        assert "selfheal.builtin.heartbeat" in sys.modules
        assert "selfheal.builtin.notifiers" not in sys.modules or "selfheal.builtin.notifiers" in before
        assert "httpx2" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


# -- what plugins register -------------------------------------------------------------------------------------------


def test_everything_a_plugin_registers_is_in_its_table() -> None:
    action = a_class("cache", verb="flush", effect=Effect.DESTRUCTIVE)
    command = type("Command", (), {"name": "cache"})()
    seen: list[Mapping[str, Any]] = []

    def told(record: Mapping[str, Any]) -> None:
        seen.append(record)

    tables = by_hand(
        plugin(
            register_checks=lambda: [a_class("cache")],
            register_workloads=lambda: {"box": a_class("box")},
            register_actions=lambda: (one for one in [action]),
            register_notifiers=lambda: [a_class("pager")],
            register_frontends=lambda: [a_class("web")],
            register_presets=lambda: {"fast": {"interval": 1}},
            register_commands=lambda: [command],
            on_record=told,
        )
    )

    assert only(tables).provides == (
        "check cache",
        "workload box",
        "action cache.flush",
        "notifier pager",
        "frontend web",
        "preset fast",
        "command cache",
        "observer",
    )
    assert tables.actions["cache.flush"] is action
    assert tables.checks.owner("cache") == "p0"
    assert tables.presets["fast"] == {"interval": 1}
    assert tables.commands == (command,)
    ((name, observer),) = tables.observers
    observer({"kind": "moved"})
    assert (name, seen) == ("p0", [{"kind": "moved"}])
    assert isinstance(tables.checks["cache"](), HealthCheck)
    assert isinstance(tables.workloads["box"](), Workload)
    assert isinstance(tables.notifiers["pager"](), Notifier)
    assert isinstance(tables.frontends["web"](), Frontend)


def test_a_class_given_by_reference_is_imported_when_it_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_driver.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "late_check.py").write_text("kind = 'x'\nclass Check: kind = 'late'\n")
    tables = by_hand(
        plugin(
            register_checks=lambda: {
                "late": "late_driver:Check",
                "bad": "late_check:Check",
                "gone": "no_such_module_here:Check",
                "none": "late_check:None_",
            }
        )
    )

    assert only(tables).loaded
    for kind, words in [
        ("late", "SystemExit: 3"),
        ("bad", "is not an attrs class"),
        ("gone", "No module named 'no_such_module_here'"),
        ("none", "has no attribute 'None_'"),
    ]:
        assert kind in tables.checks
        with pytest.raises(PluginError, match=f'the check "{kind}" of the plugin p0 cannot be loaded: .*{words}'):
            tables.checks[kind]


# -- broken ones -----------------------------------------------------------------------------------------------------


def raises() -> Iterable[type]:
    raise RuntimeError("no\nconnection")


async def asynchronous() -> list[type]:
    return []


def nothing() -> list[type]:
    return []


def half() -> Iterable[type]:
    yield a_class("half")
    raise KeyError("later")


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({"register_checks": raises}, "RuntimeError: no connection"),
        ({"register_checks": half}, "KeyError: 'later'"),
        ({"register_checks": lambda: sys.exit(3)}, "SystemExit: 3"),
        ({"register_checks": asynchronous}, "selfheal_register_checks is an `async def`"),
        ({"register_check": nothing}, 'no hook selfheal_register_check; did you mean "selfheal_register_checks"?'),
        ({"on_record": lambda entry: None}, "entry"),
        ({"register_checks": lambda: 3}, "returned int, not a list of classes"),
        ({"register_checks": lambda: "redis"}, "returned str, not a list of classes"),
        ({"register_checks": lambda: [3]}, "None is no name for a check"),
        ({"register_checks": lambda: [a_class("Red is")]}, "'Red is' is no name for a check"),
        ({"register_checks": lambda: {"a": 3}}, "check a: 3 is not an attrs class"),
        ({"register_checks": lambda: {"a": "module.Class"}}, 'write "package.module:Class"'),
        ({"register_checks": lambda: {"a": a_class("b")}}, "check a: Sample.kind is 'b', and the two must agree"),
        ({"register_checks": lambda: [type("Plain", (), {"kind": "a"})]}, "decorate it with @attrs.frozen"),
        ({"register_checks": lambda: [a_class("a", check=None)]}, "Sample has no method `check`"),
        ({"register_checks": lambda: [a_class("a", check=lambda self, c: 1)]}, "Sample.check must be an `async def`"),
        ({"register_workloads": lambda: [a_class("a", restart=3)]}, "Sample has no method `restart`"),
        ({"register_presets": lambda: [1]}, "returned list, not name -> keys"),
        ({"register_presets": lambda: {"a": 1}}, "'a' is not a name with a table of keys"),
        ({"register_commands": lambda: 3}, "returned int, not a list of commands"),
        ({"register_commands": lambda: [3]}, "3 is no click command"),
    ],
)
def test_s65_a_broken_plugin_is_disabled_with_a_reason_and_nobody_else_notices(
    hooks: dict[str, Callable[..., Any]], words: str
) -> None:
    good = plugin(register_notifiers=lambda: [a_class("good")])
    broken = plugin(register_notifiers=lambda: [a_class("pager")], **hooks)

    tables = by_hand(broken, good)

    _, first, second = tables.plugins
    assert not first.loaded
    assert words in first.reason
    assert first.reason.isprintable()
    assert first.provides == ()
    assert "pager" not in tables.notifiers
    assert second == Plugin(name="p1", origin="given by hand", provides=("notifier good",))


def test_a_plugin_without_marked_hooks_is_asked_whether_it_forgot_them() -> None:
    class Unmarked:
        def selfheal_register_checks(self) -> list[type]:
            return [a_class("a")]

    assert "are its hooks marked @hookimpl?" in only(by_hand(Unmarked())).reason


# -- clashes ---------------------------------------------------------------------------------------------------------


def test_our_own_classes_keep_their_names() -> None:
    tables = by_hand(plugin(register_checks=lambda: [a_class("tcp"), a_class("other")]))

    assert tables.checks.owner("tcp") == BUILTIN
    assert only(tables).loaded
    assert only(tables).provides == ("check other",)
    assert only(tables).reason == 'the check "tcp" is selfheal\'s own; the one of p0 is not used'


def test_a_name_that_others_claim_twice_is_nobody_s() -> None:
    one = plugin(register_checks=lambda: [a_class("cache")], register_presets=lambda: {"a": {"interval": 1}})
    two = plugin(register_checks=lambda: [a_class("cache")], register_presets=lambda: {"a": {"interval": 2}})

    tables = by_hand(one, two, two)

    assert "cache" not in tables.checks
    assert tables.checks.contested("cache") == ("p0", "p1", "p2")
    assert tables.why_not("check", "cache") == (
        'there is no check "cache": p0 and p1 and p2 both claim it',
        "let one of them in with `plugins = [...]`",
    )
    assert "claimed by p0 and p1; none of them is used" in tables.plugins[2].reason
    assert 'the preset "a" is taken' in tables.plugins[2].reason
    assert tables.presets["a"] == {"interval": 1}


# -- entry points ----------------------------------------------------------------------------------------------------


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[EntryPoint]]:
    """Entry points of three plugins: one well, one that cannot be imported, one that exits."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sample_well.py").write_text(
        textwrap.dedent(
            """
            from typing import ClassVar
            import attrs
            from selfheal.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class Well:
                kind: ClassVar[str] = "well"
                async def check(self, context): ...

            @hookimpl
            def selfheal_register_checks():
                return [Well]
            """
        )
    )
    (tmp_path / "sample_exits.py").write_text("import sys\nsys.exit('bye')\n")
    points = [
        EntryPoint("well", "sample_well", "selfheal"),
        EntryPoint("redis", "sample_not_there", "selfheal"),
        EntryPoint("exits", "sample_exits", "selfheal"),
    ]
    for name in ("sample_well", "sample_exits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return lambda: points


def test_all_that_are_installed_are_loaded_without_an_allow_list(listing: Callable[[], list[EntryPoint]]) -> None:
    tables = load_plugins(listing=listing)

    assert [(one.name, one.loaded, one.reason) for one in tables.plugins[1:]] == [
        ("exits", False, "SystemExit: bye"),
        ("redis", False, "ModuleNotFoundError: No module named 'sample_not_there'"),
        ("well", True, ""),
    ]
    assert "well" in tables.checks


def test_an_allow_list_lets_in_whom_it_names_and_imports_nobody_else(listing: Callable[[], list[EntryPoint]]) -> None:
    tables = load_plugins(["well", "postgres"], listing=listing)

    assert [(one.name, one.loaded, one.reason) for one in tables.plugins[1:]] == [
        ("exits", False, NOT_ALLOWED),
        ("redis", False, NOT_ALLOWED),
        ("well", True, ""),
        ("postgres", False, NOT_INSTALLED),
    ]
    assert "sample_exits" not in sys.modules


def never() -> list[EntryPoint]:
    raise AssertionError("entry points were listed")


@pytest.mark.parametrize(
    ("allowed", "needed"),
    [((), None), ((), {("check", "redis")}), (None, ()), (None, {("check", "tcp"), ("notifier", "log")})],
)
def test_entry_points_are_not_even_listed_where_what_is_built_in_will_do(allowed: Any, needed: Any) -> None:
    assert "tcp" in load_plugins(allowed, needed=needed, listing=never).checks


@pytest.mark.parametrize("needed", [{("check", "well")}, {("preset", "database")}, {("action", "tcp.reconnect")}])
def test_they_are_listed_when_something_else_is_named(needed: Any, listing: Callable[[], list[EntryPoint]]) -> None:
    assert "well" in load_plugins(needed=needed, listing=listing).checks


def test_two_plugins_of_one_name_are_not_confused(listing: Callable[[], list[EntryPoint]]) -> None:
    twice = [EntryPoint("well", "sample_well", "selfheal"), EntryPoint("well", "sample_well", "selfheal")]

    tables = load_plugins(listing=lambda: twice)

    assert [one.loaded for one in tables.plugins] == [True, True, False]
    assert tables.plugins[2].reason == 'another plugin is called "well" too'
    assert "well" in tables.checks


def test_the_entry_points_of_this_machine_can_be_listed() -> None:
    assert all(point.group == "selfheal" for point in loading.installed())


# -- hints -----------------------------------------------------------------------------------------------------------


def test_a_missing_kind_is_explained(listing: Callable[[], list[EntryPoint]]) -> None:
    everything = load_plugins(listing=listing)
    restricted = load_plugins(["well"], listing=listing)
    bare = load_plugins(())

    assert bare.why_not("check", "postgres")[1] == "you have `postgres` configured; install selfheal-core[postgres]"
    assert bare.why_not("frontend", "http")[1] == "you have `http` configured; install selfheal-core[starlette]"
    assert bare.why_not("check", "tpc")[1] == 'did you mean "tcp"?'
    assert bare.why_not("workload", "zzz")[1] == "there are: command, process"
    assert bare.why_not("frontend", "zzz")[1] == "there are: none"
    message, hint = everything.why_not("check", "redis")
    assert "No module named 'sample_not_there'" in message
    assert hint == "see `selfheal plugins`"
    assert restricted.why_not("check", "redis")[1] == "add it to `plugins`"


def test_a_wire_check_needs_no_check_method() -> None:
    @attrs.frozen(kw_only=True)
    class Wire:
        kind: ClassVar[str] = "wire"

        def target(self) -> None: ...

        def talk(self) -> None: ...

    assert "wire" in by_hand(plugin(register_checks=lambda: [Wire])).checks
