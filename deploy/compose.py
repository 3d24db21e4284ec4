"""Compose as the compose test drives it, version 1.29 or 2, in a project of its own."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
BUILT = ("api", "admission", "prefill_worker", "decode_worker", "celery_worker", "celery_beat")
RECEIVER = {
    "image": "slos-serve:local",
    "user": "10001",
    "init": True,
    "stop_signal": "SIGINT",
    "entrypoint": ["python", "tests/otlp_receiver.py"],
    "command": ["--host", "0.0.0.0", "--port", "4317", "--out", "/tmp/spans.jsonl"],  # noqa: S104, S108 - in a container
    "volumes": ["./tests/otlp_receiver.py:/app/tests/otlp_receiver.py:ro"],
}


class ComposeError(Exception):
    """Compose, or the engine behind it, can't do what was asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Compose:
    """One project; ``folder`` takes the override file that the test needs."""

    command: tuple[str, ...]
    project: str
    folder: Path

    @classmethod
    def find(cls, folder: Path) -> Self:
        """Compose as it is installed here, with a running engine; raises ComposeError."""
        docker = shutil.which("docker")
        if docker is None or _run((docker, "info")).returncode:
            raise ComposeError("no container engine answers: start one, or set DOCKER_HOST")
        if _run((docker, "compose", "version")).returncode == 0:
            return cls((docker, "compose"), f"slos-test-{os.getpid()}", folder)
        found = shutil.which("docker-compose")
        if found is None:
            raise ComposeError("Compose is not installed: install docker-compose or Docker's compose plugin")
        return cls((found,), f"slos-test-{os.getpid()}", folder)

    @property
    def source(self) -> Path:
        """The copy of the checkout that is built and run."""
        return self.folder / "source"

    def copy_source(self) -> None:
        """Copy the checkout, so that all images hold the same code although files are edited meanwhile."""
        listed = _run(("git", "ls-files", "-co", "--exclude-standard", "-z"))
        if listed.returncode:
            raise ComposeError(f"not a git checkout: {listed.stderr}")
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.source / name)

    def has_jaeger(self) -> bool:
        """Whether Jaeger's image is here or can be pulled."""
        text = (ROOT / "docker-compose.yml").read_text()
        image = re.search(r"image: (jaegertracing/\S+)", text)
        assert image is not None
        return any(_run(("docker", *verb, image[1])).returncode == 0 for verb in (("image", "inspect"), ("pull", "-q")))

    def override(self, receiver: bool) -> None:
        """Build with the host's network, and put the OTLP receiver in Jaeger's place if asked for."""
        services: dict[str, Any] = {name: {"build": {"network": "host"}} for name in BUILT}
        if receiver:
            services["jaeger"] = RECEIVER
        # JSON is YAML
        (self.folder / "override.yml").write_text(json.dumps({"services": services}))

    def build(self) -> None:
        """Build both images; services share them."""
        self._call("build", "api", "prefill_worker", shown=True)

    def up(self, **scale: int) -> None:
        """Start everything."""
        self._call("up", "-d", *(part for name, count in scale.items() for part in ("--scale", f"{name}={count}")))

    def stop(self) -> None:
        """Stop everything as the file says, gracefully."""
        self._call("stop")

    def down(self) -> None:
        """Remove containers, networks and volumes; images stay, to be quick the next time."""
        self._call("down", "-v", "--remove-orphans")

    def logs(self) -> str:
        """The end of every container's log."""
        return self._call("logs", "--tail", "40", "--no-color")

    def execute(self, service: str, *argv: str) -> str:
        """Output of a command in a running container."""
        return self._call("exec", "-T", service, *argv)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says about each container of the project, by name."""
        ids = _run(
            ("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}")
        ).stdout.split()
        if not ids:
            return {}
        inspected = json.loads(_run(("docker", "inspect", *ids)).stdout)
        return {container["Name"].strip("/"): container for container in inspected}

    def healthy(self, service: str) -> int:
        """How many containers of a service pass their health check."""
        return sum(
            container["Config"]["Labels"].get("com.docker.compose.service") == service
            and container["State"].get("Health", {}).get("Status") == "healthy"
            for container in self.containers().values()
        )

    def published(self) -> list[str]:
        """``address:port`` of everything that can be reached from outside."""
        found = set()
        for container in self.containers().values():
            for bindings in (container["NetworkSettings"]["Ports"] or {}).values():
                found |= {f"{binding['HostIp']}:{binding['HostPort']}" for binding in bindings or ()}
        return sorted(found)

    def exit_codes(self) -> dict[str, int]:
        """Exit codes by container."""
        return {name: container["State"]["ExitCode"] for name, container in self.containers().items()}

    def _call(self, *arguments: str, shown: bool = False) -> str:
        files = ("-f", str(self.source / "docker-compose.yml"), "-f", str(self.folder / "override.yml"))
        place = ("-p", self.project, "--project-directory", str(self.source))
        done = _run((*self.command, *files, *place, *arguments), capture=not shown)
        if done.returncode:
            raise ComposeError(f"compose {' '.join(arguments)} failed: {(done.stderr or '')[-2000:]}")
        return done.stdout or ""


def _run(argv: tuple[str, ...], capture: bool = True) -> "subprocess.CompletedProcess[str]":
    """Output is captured, or goes to standard error so that standard output stays the result's."""
    if capture:
        return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=ROOT)
    return subprocess.run(argv, stdout=2, text=True, check=False, stdin=subprocess.DEVNULL, cwd=ROOT)
