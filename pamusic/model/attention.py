"""Causal attention whose queries belong to the last keys. Knows tensors; knows no layers.

One rule serves the whole model: of `m` keys, the last `n` belong to the `n` queries, and a query sees every key up to
its own. With `n == m` this is causal self-attention. With `n < m` it is the cross-attention of Perceiver AR, or a
cached step. PyTorch's `is_causal` aligns queries with the first keys instead, so it serves only the square case.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 256  # queries at a time on a CPU: the fastest of 128, 256, 512 for contexts of 512 to 3,072

# Longest square attention that a CPU computes in blocks. Beyond it, PyTorch's fused attention is faster, forward and
# backward: 1.2 to 1.9 times for 2,048 to 8,192 positions on one core. Its memory does not grow with the square.
SQUARE_IN_BLOCKS = 2048


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """Return the mask `[num_queries, num_keys]`, True where a query sees a key."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def attend(queries: Tensor, keys: Tensor, values: Tensor, prefix_valid: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention, causal and aligned at the last key.

    Args:
        queries: `[batch, heads, n, head_dim]`.
        keys, values: `[batch, heads, m, head_dim]`, `m >= n`.
        prefix_valid: `[batch, m - n]`, False for prefix keys that no query sees. None: all are seen.

    Returns:
        `[batch, heads, n, head_dim]`.
    """
    n, m = queries.shape[-2], keys.shape[-2]
    if n == 1 and prefix_valid is None:
        return F.scaled_dot_product_attention(queries, keys, values)
    if queries.device.type == "cpu" and not n == m > SQUARE_IN_BLOCKS:
        return _attend_in_blocks(queries, keys, values, prefix_valid)
    if n == m:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    mask = causal_mask(n, m, queries.device)
    if prefix_valid is not None:
        mask = mask & F.pad(prefix_valid, (0, n), value=True)[:, None, None, :]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def _attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, prefix_valid: Tensor | None) -> Tensor:
    """Compute `attend` for a block of queries at a time, without the keys that no query of the block sees.

    Compiled on a CPU, these plain products run forward and backward 1.4 to 2 times as fast as PyTorch's fused
    attention (`benchmarks/attention.py`), which also computes what the mask hides.
    """
    n, m = queries.shape[-2], keys.shape[-2]
    scale = queries.shape[-1] ** -0.5
    outputs = []
    for start in range(0, n, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n)
        seen = m - n + stop
        # In place, because half of the time on long contexts goes into moving the scores.
        scores = (queries[:, :, start:stop] @ keys[:, :, :seen].transpose(-1, -2)).float().mul_(scale)
        scores[..., m - n + start :] += torch.full((stop - start, stop - start), float("-inf")).triu(1)
        if prefix_valid is not None:
            scores[..., : m - n].masked_fill_(~prefix_valid[:, None, None, :], float("-inf"))
        outputs.append(scores.softmax(-1).to(values.dtype) @ values[:, :, :seen])
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
