"""Computes prompts on a vLLM engine, sends the first token and hands the KV cache to a decode worker.

Starting another one of these is all there is to scaling: it finds free ports, registers itself and gets work.
"""

import asyncio

from common.messages import Stage
from common.process import run
from common.settings import Settings
from common.worker.process import READS, run_worker


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Run until SIGTERM, then drain."""
    await run_worker(Stage.PREFILL, settings, stop)


if __name__ == "__main__":
    run("prefill_worker", main, about=__doc__, reads=READS)
