"""The state of every optimizer the engine carries: taken, kept and given back, training goes on with the same bits."""

import pytest
import torch

import orderscope as osc
from law_optimizers import OPTIMIZERS
from orderscope.training.loop import Session, start, train
from orderscope.training.setup import describe_optimizer, optimizer_factory, optimizer_state
from orderscope.training.state import capture, restore
from tasks_tiny import classifier

HALF, STEPS = 3, 6


def halfway(name: str) -> tuple[osc.Task, Session, torch.Tensor]:
    """A task, its training after half of the steps, and the weights that it ends with."""
    task = osc.Task(**classifier(steps=STEPS) | {"optimizer": OPTIMIZERS[name], "scheduler": None})
    whole = start(task)
    train(task, whole, task.order, 0, STEPS)
    session = start(task)
    train(task, session, task.order, 0, HALF)
    return task, session, task.layout.flatten(whole.parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_training_goes_on_to_the_bit(name: str) -> None:
    task, session, expected = halfway(name)
    other = start(task)
    restore(other, capture(session), HALF)
    assert other.optimizer.state_dict()["state"].keys() == session.optimizer.state_dict()["state"].keys()
    train(task, other, task.order, HALF, STEPS)
    assert torch.equal(task.layout.flatten(other.parameters), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_made_again_from_plain_values_it_goes_on_too(name: str) -> None:
    """As for a recorded loop: the optimizer from its description, its state as a state_dict."""
    task, session, expected = halfway(name)
    header, state = describe_optimizer(session), capture(session)
    other = start(task)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters, session.parameters, strict=True):
            mine.copy_(theirs)
    optimizer = optimizer_factory(header)(other.model.parameters())
    own = optimizer_state(header, list(task.layout.names), state)
    if own is not None:  # plain SGD has none
        optimizer.load_state_dict({"state": own["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    train(task, Session(other.model, optimizer, None, task.layout), task.order, HALF, STEPS)
    assert torch.equal(task.layout.flatten(other.parameters), expected)
