"""What needs no driver, registered like any other plugin: by the hooks, and imported when a service needs it."""

from __future__ import annotations

from collections.abc import Mapping

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_checks() -> Mapping[str, str]:
    return {
        "tcp": "selfheal.builtin.wire_checks:TcpCheck",
        "http": "selfheal.builtin.wire_checks:HttpCheck",
        "redis_ping": "selfheal.builtin.wire_checks:RedisPing",
        "command": "selfheal.builtin.command:CommandCheck",
        "process": "selfheal.builtin.process_check:ProcessCheck",
        "heartbeat": "selfheal.builtin.heartbeat:HeartbeatCheck",
    }


@hookimpl
def selfheal_register_workloads() -> Mapping[str, str]:
    return {
        "command": "selfheal.builtin.command:CommandWorkload",
        "process": "selfheal.builtin.process:ProcessWorkload",
    }


@hookimpl
def selfheal_register_actions() -> Mapping[str, str]:
    # These are no verbs of a check: a step names one itself, as in `{ action = "restart", http = { url = … } }`.
    return {
        "http": "selfheal.builtin.actions:HttpHook",
        "directory": "selfheal.builtin.cache_directory:CacheDirectory",
        "standby": "selfheal.builtin.standby:Standby",
    }


@hookimpl
def selfheal_register_notifiers() -> Mapping[str, str]:
    return {
        "log": "selfheal.builtin.notifiers:LogNotifier",
        "webhook": "selfheal.builtin.notifiers:WebhookNotifier",
        "alertmanager": "selfheal.builtin.alertmanager:AlertmanagerNotifier",
    }
