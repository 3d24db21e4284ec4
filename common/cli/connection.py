"""Which pipeline a command talks to: the one that is named, else the one that ``up`` runs, else the settings'."""

from dataclasses import dataclass

from common.cli.paths import state_file
from common.cli.state import read_state
from common.settings import Settings


@dataclass(frozen=True, slots=True)
class Target:
    """Addresses of a pipeline."""

    url: str
    redis_url: str


def target(settings: Settings, url: str | None = None, redis_url: str | None = None) -> Target:
    """The pipeline to talk to."""
    running = read_state(state_file())
    here = f"http://{settings.host}:{settings.port}"
    if running is None:
        return Target((url or here).rstrip("/"), redis_url or settings.redis_url)
    return Target((url or running.url).rstrip("/"), redis_url or running.redis_url)
