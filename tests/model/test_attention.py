"""What attention sees: literal matrices, and the fast way against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from pamusic.model.attention import QUERY_BLOCK, attend, causal_mask
from pamusic.model.rotary import rotate, rotation


def test_a_latent_sees_its_past_and_nothing_after_it():
    assert causal_mask(3, 6).int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]


def test_with_as_many_keys_as_queries_the_mask_is_a_triangle():
    assert causal_mask(3, 3).int().tolist() == [
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 1],
    ]


def seen_by(num_queries, num_keys, prefix_valid=None):
    """Which keys each query attends to: the values are one-hot, so the output is the attention matrix itself."""
    queries, keys = torch.randn(1, 1, num_queries, 8), torch.randn(1, 1, num_keys, 8)
    values = torch.eye(num_keys)[None, None]
    return (attend(queries, keys, values, prefix_valid)[0, 0] > 0).int().tolist()


def test_attention_itself_sees_what_the_mask_says():
    assert seen_by(3, 6) == causal_mask(3, 6).int().tolist()
    assert seen_by(3, 3) == causal_mask(3, 3).int().tolist()
    assert seen_by(1, 4) == [[1, 1, 1, 1]]


def test_dropped_keys_of_the_prefix_are_seen_by_no_latent():
    assert seen_by(2, 5, prefix_valid=torch.tensor([[True, False, True]])) == [
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 1],
    ]


def test_a_latent_keeps_its_own_key_when_the_whole_prefix_is_dropped():
    assert seen_by(2, 4, prefix_valid=torch.tensor([[False, False]])) == [
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (7, 7), (5, 40), (QUERY_BLOCK + 3, 2 * QUERY_BLOCK)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_blocks_equals_pytorch_with_a_mask(num_queries, num_keys, masked):
    torch.manual_seed(0)
    queries = torch.randn(2, 3, num_queries, 16)
    keys, values = torch.randn(2, 3, num_keys, 16), torch.randn(2, 3, num_keys, 16)
    prefix_valid = torch.rand(2, num_keys - num_queries) < 0.5 if masked else None
    mask = causal_mask(num_queries, num_keys)
    if prefix_valid is not None:
        mask = mask & F.pad(prefix_valid, (0, num_queries), value=True)[:, None, None]

    fast = attend(queries, keys, values, prefix_valid)

    torch.testing.assert_close(fast, F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask))


def test_rotary_attention_depends_on_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(query_position, key_position):
        turned = [
            rotate(heads, rotation(torch.tensor([position]), 16, 0.5))
            for heads, position in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert product(9, 4) == pytest.approx(product(100_009, 100_004), abs=1e-5)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_only_a_fraction_of_the_head_is_turned():
    heads = torch.randn(1, 2, 3, 32)
    turned = rotate(heads, rotation(torch.arange(3) + 1, 32, 0.25))
    assert torch.equal(turned[..., 8:], heads[..., 8:])
    assert not torch.allclose(turned[..., :8], heads[..., :8])
