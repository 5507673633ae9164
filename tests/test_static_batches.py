"""Which requests share a static batch, against the rule written out."""

from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies.static_batches import next_batch

REQUESTS = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from([1, 2, 4]), st.integers(0, 60)), min_size=1, max_size=40
)


def groups(requests, most):
    """By the rule's words: of every length that a group could have, the last of those worth most a token."""
    while requests:
        worth = {
            n: sum(p for _, p, _ in requests[:n]) / max(s for s, _, _ in requests[:n]) for n in lengths(requests, most)
        }
        n = max(n for n, value in worth.items() if value == max(worth.values()))
        yield requests[:n]
        requests = requests[n:]


def lengths(requests, most):
    return range(1, min(most, len(requests)) + 1)


@given(requests=REQUESTS, most=st.integers(1, 12))
def test_the_first_ripe_group_goes_with_those_before_it_that_still_fit(requests, most):
    in_order = list(groups(requests, most))
    total = sum(price for _, price, _ in requests)

    def is_ripe(group):
        longest, of_group = max(size for size, _, _ in group), sum(price for _, price, _ in group)
        return len(group) == most or sum(p * w for _, p, w in group) >= (total - of_group) * longest

    ripe = next((number for number, group in enumerate(in_order) if is_ripe(group)), 0)
    end = sum(len(group) for group in in_order[: ripe + 1])
    start = max(0, end - most) if is_ripe(in_order[ripe]) else 0
    assert next_batch(*zip(*requests, strict=True), most) == (start, end)


def test_an_idle_engine_serves_what_there_is():
    assert next_batch([5, 100], [1, 1], [0, 0], 8) == (0, 1)
    assert next_batch([100], [1], [0], 8) == (0, 1)


def test_a_group_is_ripe_when_its_waiting_has_cost_what_it_costs_the_others():
    sizes, prices = [4, 4, *[50] * 8], [1] * 10
    assert next_batch(sizes, prices, [15, 16, *[0] * 8], 8) == (2, 10)
    assert next_batch(sizes, prices, [16, 16, *[0] * 8], 8) == (0, 2)


def test_places_left_go_to_those_just_before():
    assert next_batch([4, 4, 50, 50, 50, 200], [1] * 6, [0, 0, 100, 100, 100, 0], 4) == (1, 5)
