import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orderscope.errors import OrderscopeError
from orderscope.orders import in_blocks, mixes_groups, resolve, step_groups

REFERENCE = np.arange(12).reshape(6, 2)
GROUPS = list("aabbaaccbbbc")  # steps a b a c b and a tie of b and c, which b wins
SIGNALS = {"loss": [5, 5, 1, 1, 2, 2, 0, 0, 9, 9, 3, 3], "-odd": torch.arange(12.0)}


def steps(text):
    return [int(row[0]) // 2 for row in resolve(text, REFERENCE, GROUPS, SIGNALS)]


def test_majority_group_of_a_step():
    assert step_groups(REFERENCE, GROUPS) == ["a", "b", "a", "c", "b", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reference", [0, 1, 2, 3, 4, 5]),
        ("reverse", [5, 4, 3, 2, 1, 0]),
        ("groups:b,c", [1, 4, 5, 3, 0, 2]),
        ("groups:c", [3, 0, 2, 1, 4, 5]),
        ("groups: c , a", [3, 0, 2, 1, 4, 5]),
        ("early:c", [3, 0, 1, 2, 4, 5]),
        ("late:a", [1, 3, 4, 5, 0, 2]),
        ("interleave", [1, 0, 3, 4, 2, 5]),
        ("sort:loss", [3, 1, 2, 5, 0, 4]),
        ("sort:-loss", [4, 0, 5, 2, 1, 3]),
        ("sort:loss:desc", [4, 0, 5, 2, 1, 3]),
        ("sort:loss:asc", [3, 1, 2, 5, 0, 4]),
        ("sort:-odd", [0, 1, 2, 3, 4, 5]),
        ("swap:0,5", [5, 1, 2, 3, 4, 0]),
        ("move:0,3", [1, 2, 3, 0, 4, 5]),
        ("move:4,1", [0, 4, 1, 2, 3, 5]),
        ("groups:b | swap:0,5", [3, 4, 5, 0, 2, 1]),
        ("reverse|reverse", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_meaning(text, expected):
    assert steps(text) == expected


def test_shuffle_is_the_seed_and_nothing_else():
    assert steps("shuffle:7") == np.random.default_rng(7).permutation(6).tolist()
    assert steps("shuffle:7") != steps("shuffle:8")


plain = st.sampled_from(["reference", "reverse", "interleave", "groups:c,b", "early:b", "late:c", "sort:loss"])
pair = st.tuples(st.integers(0, 5), st.integers(0, 5))
part = st.one_of(
    plain,
    st.integers(0, 99).map("shuffle:{}".format),
    pair.map(lambda p: f"swap:{p[0]},{p[1]}"),
    pair.map(lambda p: f"move:{p[0]},{p[1]}"),
)


@given(st.lists(part, min_size=1, max_size=5).map("|".join), st.randoms())
def test_any_chain_moves_whole_steps_or_samples(text, random):
    ids = list(range(12))
    random.shuffle(ids)
    reference = np.array(ids).reshape(6, 2)
    order = resolve(text, reference, GROUPS, SIGNALS)
    assert order.dtype == np.int64
    assert order.shape == reference.shape
    assert sorted(order.ravel()) == sorted(reference.ravel())
    order = resolve(text, reference, GROUPS, SIGNALS, regroup=False)
    assert sorted(map(tuple, order.tolist())) == sorted(map(tuple, reference.tolist()))


MIXED = np.arange(16).reshape(4, 4)
LABELS = ["abcd"[i % 4] for i in range(16)]


def test_samples_move_where_batches_mix_groups():
    assert mixes_groups(MIXED, LABELS)
    assert not mixes_groups(REFERENCE, GROUPS)
    late = resolve("late:b", MIXED, LABELS)
    assert late.tolist() == [[0, 2, 3, 4], [6, 7, 8, 10], [11, 12, 14, 15], [1, 5, 9, 13]]
    assert resolve("early:d", MIXED, LABELS).tolist() == [[3, 7, 11, 15], [0, 1, 2, 4], [5, 6, 8, 9], [10, 12, 13, 14]]
    blocks = resolve("groups:c,a", MIXED, LABELS)
    assert ["".join(LABELS[i] for i in batch) for batch in blocks] == ["cccc", "aaaa", "bbbb", "dddd"]
    spread = resolve("groups:c,a|interleave", MIXED, LABELS)  # batches of one group are steps again
    assert sorted(map(tuple, spread.tolist())) == sorted(map(tuple, blocks.tolist()))
    one_sided = resolve("interleave", np.array([[0, 4, 8, 1], [12, 2, 3, 5], [6, 7, 9, 10], [11, 13, 14, 15]]), LABELS)
    assert [sorted(LABELS[i] for i in batch) for batch in one_sided] == [list("abcd")] * 4
    assert resolve("late:b", MIXED, LABELS, regroup=False).tolist() == MIXED.tolist()


@given(pair)
def test_swaps_undo_themselves_and_moves_their_way_back(ij):
    i, j = ij
    assert steps(f"swap:{i},{j}|swap:{i},{j}") == steps("reference")
    assert steps(f"move:{i},{j}|move:{j},{i}") == steps("reference")


@given(st.lists(st.sampled_from("abc"), min_size=24, max_size=24))
def test_interleaved_groups_are_nowhere_ahead_by_more_than_a_step(groups):
    reference = np.arange(24).reshape(24, 1)
    order = resolve("interleave", reference, groups)
    labels = np.array(groups)[order[:, 0]]
    for name in set(groups):
        share = np.mean(labels == name)
        ahead = np.cumsum(labels == name) - share * np.arange(1, 25)
        assert np.abs(ahead).max() <= 1.5


def test_file_takes_the_place_of_the_order(tmp_path):
    path = tmp_path / "best.npy"
    np.save(path, REFERENCE[::-1])
    np.testing.assert_array_equal(resolve(f"{path}|swap:0,1", REFERENCE)[:2], [[8, 9], [10, 11]])
    np.save(path, REFERENCE[:3])
    with pytest.raises(OrderscopeError, match=r"shape \[3, 2\]"):
        resolve(str(path), REFERENCE)
    path.write_text("hello")
    with pytest.raises(OrderscopeError, match="not a numpy array"):
        resolve(str(path), REFERENCE)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(OrderscopeError, match="not a numpy array"):
        resolve(str(path), REFERENCE)
    with pytest.raises(OrderscopeError, match=r"no file missing\.npy"):
        resolve("missing.npy", REFERENCE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backwards", "found order expression 'backwards'; expected one of reference, reverse, shuffle"),
        ("", "found order expression ''"),
        ("groups:a,x", "unknown group 'x' in 'groups:a,x'; expected one of the known groups: a, b, c"),
        ("groups:a,a", "each group once"),
        ("late:", "unknown group ''"),
        ("late:a,b", "expected late:GROUP"),
        ("sort:weight", "unknown signal 'weight'; expected one of the known signals: loss, -odd"),
        ("sort:loss:up", "sort:SIGNAL"),
        ("shuffle", "shuffle:SEED"),
        ("shuffle:-1", "shuffle:SEED"),
        ("swap:0,6", "steps from 0 to 5"),
        ("swap:0", "swap:i,j"),
        ("move:a,1", "move:i,j"),
        ("reverse:2", "without an argument"),
        ("reverse|", "order expression ''"),
    ],
)
def test_errors_name_the_part_and_what_is_known(text, message):
    with pytest.raises(OrderscopeError, match=message):
        steps(text)


def test_groups_are_needed_where_they_are_asked():
    with pytest.raises(OrderscopeError, match="without groups"):
        resolve("groups:a", REFERENCE)
    with pytest.raises(OrderscopeError, match="without groups"):
        resolve("interleave", REFERENCE)


def test_signals_must_cover_the_samples():
    with pytest.raises(OrderscopeError, match=r"signal 's' of shape \[3\]; expected one finite number per sample"):
        resolve("sort:s", REFERENCE, None, {"s": [1, 2, 3]})
    with pytest.raises(OrderscopeError, match="not finite"):
        resolve("sort:s", REFERENCE, None, {"s": [np.nan] * 12})


def test_numbers_are_groups_too():
    assert step_groups(REFERENCE, [1, 1, 0, 0] * 3) == ["1", "0"] * 3
    assert resolve("groups:0", REFERENCE, [1, 1, 0, 0] * 3)[0, 0] == 2


def test_blocks_keep_the_order_inside_a_group() -> None:
    labels = ["b", "a", "c", "b", "a"]
    assert in_blocks(labels, ["c", "b"]).tolist() == [2, 0, 3, 1, 4]
    assert in_blocks(labels, ["a", "b", "c", "absent"]).tolist() == [1, 4, 0, 3, 2]
    assert in_blocks([], ["a"]).tolist() == []
