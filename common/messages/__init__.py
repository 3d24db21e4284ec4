"""Every message that crosses a process boundary.

Times are seconds of the Unix epoch (``_s``), durations carry their unit in the name. All messages are frozen
and travel through :mod:`common.codec`; the README's table says who sends what to whom.
"""

from common.messages.control import Cancel, Control, KeepTrace, Known
from common.messages.progress import Decided, End, Frame, Progress, Record, Reply, State
from common.messages.request import Overload, Request, Sampling, Slo
from common.messages.work import Decision, HandOff, Stage, Verdict, Work
from common.messages.workers import Profile, StepSample, StepSamples, WorkerState, kind_of

__all__ = [
    "Cancel",
    "Control",
    "Decided",
    "Decision",
    "End",
    "Frame",
    "HandOff",
    "KeepTrace",
    "Known",
    "Overload",
    "Profile",
    "Progress",
    "Record",
    "Reply",
    "Request",
    "Sampling",
    "Slo",
    "Stage",
    "State",
    "StepSample",
    "StepSamples",
    "Verdict",
    "Work",
    "WorkerState",
    "kind_of",
]
