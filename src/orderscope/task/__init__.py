"""What is trained: the task, its checks, its fingerprint, its loss as a pure function."""

from orderscope.task.task import Task, require_task

__all__ = ["Task", "require_task"]
