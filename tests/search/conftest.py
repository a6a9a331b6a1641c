"""Recorded tiny runs that the tests of searching ask."""

from __future__ import annotations

from pathlib import Path

import pytest

import orderscope as osc
import tasks_tiny
from law_tasks import simulated


@pytest.fixture(scope="session")
def char(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """A character model with three groups, whose order matters."""
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("char"), anchors=4, probes=4)[0]


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """Few weights, and a metric that is no loss."""
    return simulated(tasks_tiny.classifier(), tmp_path_factory.mktemp("classifier"), anchors=4, probes=4)[0]


@pytest.fixture(scope="session")
def kept_together(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """Without single samples' gradients."""
    path: Path = tmp_path_factory.mktemp("kept")
    return simulated(tasks_tiny.classifier(), path, anchors=3, probes=3, sample_anchors=0)[0]
