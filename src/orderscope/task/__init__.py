"""What is trained: the task, its checks, its fingerprint, its loss as a pure function."""

from orderscope.task.task import Task

__all__ = ["Task"]
