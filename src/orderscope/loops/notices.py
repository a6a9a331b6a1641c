"""What a recorder has to say about a training: one line each, a class each, so that each can be silenced or made an
error by `warnings.filterwarnings`."""

from __future__ import annotations

import warnings
from contextlib import suppress

from orderscope.text import plain


class RecorderWarning(UserWarning):
    """Something about a recorded training that its owner should know."""


class ChanceWarning(RecorderWarning):
    """The forward pass draws random numbers (dropout, noise): no other order can be simulated."""


class BatchStatisticsWarning(RecorderWarning):
    """A layer normalises by the statistics of its batch: samples have no loss of their own."""


class SlowPathWarning(RecorderWarning):
    """Gradients of single samples are taken one after the other: recording afterwards is slower."""


class UnevenStepsWarning(RecorderWarning):
    """Steps have different numbers of samples: only a window whose steps all have the same number can be predicted."""


class NoGroupsWarning(RecorderWarning):
    """The task has no groups: questions by group are not possible."""


class TaskWarning(RecorderWarning):
    """The parts of the task do not do what the loop did at its first step."""


class ScaledWarning(RecorderWarning):
    """The loop averages otherwise than the documented loss; the difference was found and is applied."""


class StartedOverWarning(RecorderWarning):
    """A loop that had come to its end is trained once more into the same run."""


class ColdMomentsWarning(RecorderWarning):
    """Training resumes from a checkpoint with an optimizer without its moments."""


class OtherOrderWarning(RecorderWarning):
    """After a resume the samples come in another order than before it."""


class RepeatedSamplesWarning(RecorderWarning):
    """A sample came twice before all others of the epoch were seen."""


class UnseenSamplesWarning(RecorderWarning):
    """Samples never came although more than an epoch was trained."""


class SameBatchWarning(RecorderWarning):
    """Two ranks trained on the same samples."""


def tell(kind: type[RecorderWarning], text: str) -> None:
    """Warn in one line. Never raises: warnings may have been made errors, and training must go on.

    Args:
        kind: class of the warning.
        text: what it says.
    """
    with suppress(Exception):
        warnings.warn(plain(text), kind, stacklevel=4)
