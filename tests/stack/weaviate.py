"""Weaviates of the tests: real servers on ports of their own, alone or as a cluster of three.

Built from source, see `tests.stack.built`. The first node of a cluster is the one that the others join.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.servers import free_ports, until
from tests.stack.built import built
from tests.stack.child import Child
from tests.stack.running import Program

KEY = "sesame-open-sesame"


class Weaviate(Child):
    """One node, in a folder of its own."""

    def __init__(self, folder: Path, *, name: str = "node1", key: str | None = KEY) -> None:
        self.program = built("weaviate") / "weaviate-server"
        self.folder = folder
        self.name = name
        self.key = key
        self._gossip, self._raft, self.port = (free_ports(2) for _ in range(3))  # it wants its ports in pairs
        self.grpc_port = self.port + 1
        self.url = f"http://127.0.0.1:{self.port}"
        self.join: Weaviate | None = None
        """The first node of the cluster, where this is another."""
        self.peers: list[Weaviate] = [self]
        """All nodes of the cluster, this one included."""
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, **environment: str) -> None:
        """Start it, with more environment, and do not wait."""
        self._process = self.serving(**environment).begin(self.folder / f"{self.name}.log")

    def serving(self, **environment: str) -> Program:
        """Return the server as a program; its folder is made."""
        data = self.folder / self.name
        data.mkdir(parents=True, exist_ok=True)
        known = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PERSISTENCE_DATA_PATH": str(data),
            "DEFAULT_VECTORIZER_MODULE": "none",
            "CLUSTER_HOSTNAME": self.name,
            "CLUSTER_GOSSIP_BIND_PORT": str(self._gossip),
            "CLUSTER_DATA_BIND_PORT": str(self._gossip + 1),
            "RAFT_PORT": str(self._raft),
            "RAFT_INTERNAL_RPC_PORT": str(self._raft + 1),
            "RAFT_JOIN": ",".join(f"{node.name}:{node._raft}" for node in self.peers),
            "RAFT_BOOTSTRAP_EXPECT": str(len(self.peers)),
            "CLUSTER_IN_LOCALHOST": "true",
            "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
            "CLUSTER_BIND_ADDR": "127.0.0.1",
            "MEMBERLIST_FAST_FAILURE_DETECTION": "true",
            "RAFT_BOOTSTRAP_TIMEOUT": "600",
            "RAFT_TIMEOUTS_MULTIPLIER": "1" if self.peers == [self] else "5",  # alone it leads after 2 s instead of 8
            "GRPC_PORT": str(self.grpc_port),
            "GO_PROFILING_DISABLE": "true",
            "DISABLE_TELEMETRY": "true",
            "GOMAXPROCS": "2",
        }
        if self.key is not None:
            known |= {
                "AUTHENTICATION_APIKEY_ENABLED": "true",
                "AUTHENTICATION_APIKEY_ALLOWED_KEYS": self.key,
                "AUTHENTICATION_APIKEY_USERS": "steward",
                "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
            }
        if self.join is not None:
            known["CLUSTER_JOIN"] = f"127.0.0.1:{self.join._gossip}"
        return Program(
            arguments=(str(self.program), "--host", "127.0.0.1", "--port", str(self.port), "--scheme", "http"),
            environment=known | environment,
            cwd=data,
        )

    def start(self, **environment: str) -> None:
        """Start it, and wait until it says that it is ready."""
        self.begin(**environment)
        until(lambda: self.ask("/v1/.well-known/ready")[0] == 200, "Weaviate is ready", 60.0)

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of an answer; status 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=12.0)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read()
            try:
                return answer.status, json.loads(said) if said else None
            except ValueError:
                return answer.status, said
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()


def cluster(folder: Path, size: int = 3) -> list[Weaviate]:
    """Return nodes that will find each other once they run; nothing is started."""
    nodes = [Weaviate(folder, name=f"node{number}") for number in range(1, size + 1)]
    for node in nodes:
        node.peers = nodes
        node.join = nodes[0] if node is not nodes[0] else None
    return nodes
