"""Measured engine steps to latency profiles, through Redis: workers publish, the refit task fits, all read."""

import time
from collections.abc import Callable, Mapping

from common.codec import decode, encode
from common.errors import CodecError
from common.keys import Keys
from common.latency_fit import fit, median_error
from common.latency_model import LatencyModel
from common.messages import Profile, StepSample, StepSamples, WorkerState
from common.offline.store import Client, connect, redis_call
from common.settings import Settings
from common.telemetry.logs import get_logger

STEP_MESSAGES = 512
"""Messages that the stream of a kind of worker keeps."""

MAX_SAMPLES = 512
"""Samples of one message that are read; a worker sends its steps about once a second."""

LEAST_SAMPLES = 32
PROFILE_S = 3600
"""A profile without new steps is forgotten after this, and workers' own measurements count again."""

_log = get_logger(__name__)


class RedisProfiles:
    """A worker's :class:`common.worker.calibrating.Profiles` in Redis; it connects when first used."""

    def __init__(self, settings: Settings) -> None:
        self._redis = connect(settings)
        self._keys = Keys(settings.namespace)

    async def publish(self, kind: str, steps: StepSamples) -> None:
        """See :func:`publish_steps`; raises BusUnavailable."""
        async with redis_call():
            await publish_steps(self._redis, self._keys, kind, steps)

    async def latest(self, kind: str) -> LatencyModel | None:
        """The model of the refitted profile, if any; raises BusUnavailable."""
        async with redis_call():
            profile = await load_profile(self._redis, self._keys, kind)
        return None if profile is None else profile.latency

    async def close(self) -> None:
        """Release the connection."""
        await self._redis.aclose()


async def publish_steps(redis: Client, keys: Keys, kind: str, steps: StepSamples) -> None:
    """Add a worker's measured steps to the bounded log."""
    key = keys.steps(kind)
    async with redis_call(), redis.pipeline(transaction=True) as pipe:
        pipe.xadd(key, {"m": encode(steps)}, maxlen=STEP_MESSAGES, approximate=True)
        pipe.expire(key, PROFILE_S)
        await pipe.execute()


async def load_profile(redis: Client, keys: Keys, kind: str) -> Profile | None:
    """The refitted profile; None if there is none, or none that this build can read."""
    async with redis_call():
        raw = await redis.get(keys.profile(kind))
    try:
        return None if raw is None else decode(raw, Profile)
    except CodecError as error:
        _log.warning("a latency profile was left out", kind=kind, error=str(error))
        return None


async def refit(
    redis: Client, keys: Keys, workers: Mapping[str, WorkerState | None], clock: Callable[[], float] = time.time
) -> Mapping[str, Profile]:
    """Fit and publish a profile for each kind of worker that has live workers and enough steps."""
    measured: dict[str, LatencyModel] = {}
    for state in workers.values():
        if state is not None:
            measured.setdefault(state.kind, state.latency)
    fitted = {}
    for kind, latency in measured.items():
        samples = await _samples(redis, keys, kind)
        if len(samples) < LEAST_SAMPLES:
            continue
        before = await load_profile(redis, keys, kind)
        base = latency if before is None else before.base
        model = fit(samples, base)
        profile = Profile(kind, base, model, len(samples), median_error(samples, model), clock())
        async with redis_call():
            await redis.set(keys.profile(kind), encode(profile), ex=PROFILE_S)
        fitted[kind] = profile
    return fitted


async def _samples(redis: Client, keys: Keys, kind: str) -> list[StepSample]:
    """Oldest first; a message that can't be read is left out."""
    samples: list[StepSample] = []
    async with redis_call():
        entries = await redis.xrange(keys.steps(kind))
    for _, fields in entries:
        try:
            samples += decode(fields.get(b"m", b""), StepSamples).samples[:MAX_SAMPLES]
        except CodecError as error:
            _log.warning("measured steps were left out", kind=kind, error=str(error))
    return samples
