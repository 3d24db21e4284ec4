"""How the api asks for background work."""

import asyncio

from celery.exceptions import OperationalError

from common.celery_app import make_app
from common.settings import Settings
from common.telemetry.logs import get_logger

_log = get_logger(__name__)


class BatchQueue:
    """Starts batches. A start that is lost is made up for by ``resume_batches``, so it never fails a request."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)

    async def start(self, batch_id: str) -> bool:
        """Queue a batch's first slice; False if the queue did not answer."""
        return await asyncio.to_thread(self._send, batch_id)

    def close(self) -> None:
        """Release connections."""
        self._app.close()

    def _send(self, batch_id: str) -> bool:
        try:
            self._app.send_task("run_batch", (batch_id,), retry=False)
        except (OperationalError, OSError) as error:
            _log.warning("a batch waits to be resumed", batch_id=batch_id, error=type(error).__name__)
            return False
        return True
