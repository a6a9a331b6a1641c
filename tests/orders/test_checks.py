import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orderscope.errors import OrderscopeError
from orderscope.orders import check_order, check_orders, check_reference

REFERENCE = np.arange(6).reshape(3, 2)


@given(st.permutations(range(6)))
def test_every_rearrangement_is_an_order_in_every_form(ids):
    order = np.array(ids).reshape(3, 2)
    for form in (order, order.tolist(), torch.tensor(ids).view(3, 2), order.astype(np.uint8)):
        checked = check_orders(form, REFERENCE)
        assert checked.dtype == np.int64
        np.testing.assert_array_equal(checked, order[None])
    np.testing.assert_array_equal(check_orders([order, REFERENCE], REFERENCE), np.stack([order, REFERENCE]))


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_other_samples_are_told_apart(ids):
    order = np.array(ids).reshape(3, 2)
    np.testing.assert_array_equal(check_order(order, REFERENCE, allow_other_samples=True), order)
    if sorted(ids) == list(range(6)):
        check_order(order, REFERENCE)
    else:
        missing = next(i for i in range(6) if i not in ids)
        with pytest.raises(OrderscopeError, match=rf"missing ({missing}\b|.*, {missing}\b)"):
            check_order(order, REFERENCE)


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ([[0, 1], [2, 3], [4, 4]], "found an order of other samples: missing 5; too often 4; expected every sample"),
        ([REFERENCE, [[0, 1], [2, 3], [4, 4]]], "found order 1 of other samples: missing 5; too often 4"),
        ([[0, 1], [2, 3], [4, 6]], "sample ids out of range: 6; expected ids from 0 to 5"),
        ([[0, 1], [2, 3], [4, -1]], "sample ids out of range: -1"),
        ([[0, 1], [2, 3]], r"shape \[2, 2\]; expected \[steps, batch\] = \[3, 2\], or \[n, 3, 2\]"),
        ([0, 1, 2, 3, 4, 5], r"shape \[6\]"),
        ([[0, 1], [2, 3], [4]], "steps have different lengths"),
        (REFERENCE.astype(float), "dtype float64; expected integer sample ids"),
        (REFERENCE > 0, "dtype bool"),
        (np.zeros((0, 3, 2), int), r"shape \[0, 3, 2\]"),
        (np.full((3, 2), "a"), "dtype <U1"),
    ],
)
def test_wrong_orders_are_named(order, text):
    with pytest.raises(OrderscopeError, match=text):
        check_orders(order, REFERENCE)


def test_ids_in_range_of_the_data_but_not_of_the_reference():
    with pytest.raises(OrderscopeError, match="missing 5; not in the recorded order 9"):
        check_order([[0, 1], [2, 3], [4, 9]], REFERENCE, samples=10)
    assert check_order([[0, 1], [2, 3], [4, 9]], REFERENCE, samples=10, allow_other_samples=True)[2, 1] == 9


def test_many_ids_are_cut_short():
    reference = np.arange(40).reshape(10, 4)
    with pytest.raises(OrderscopeError, match="missing 1, 2, 3, 4, 5 and 34 more; too often 0;"):
        check_order(np.zeros((10, 4), int), reference)


def test_several_epochs_count_every_use():
    twice = np.concatenate([REFERENCE, REFERENCE])
    check_order(twice[::-1], twice)
    with pytest.raises(OrderscopeError, match="missing 0; too often 1"):
        check_order(np.where(np.arange(12).reshape(6, 2) == 6, 1, twice), twice)


def test_reference_order_of_a_task():
    with pytest.raises(OrderscopeError, match=r"shape \[4\]"):
        check_reference([0, 1, 2, 3], 4)
    with pytest.raises(OrderscopeError, match="out of range: 4"):
        check_reference([[0, 4]], 4)
