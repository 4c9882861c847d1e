"""The pre-norm transformer block of the miniature students."""

from __future__ import annotations

from tutelage.errors import missing_extra

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer's earlier positions, (N, heads, S, width / heads) each."""


class Block(nn.Module):
    """Attention, then a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_NTD: Tensor, mask: Tensor) -> Tensor:
        """mask: true where a position may look, broadcastable to (N, heads, T, T)."""
        return self.extend(x_NTD, mask, None)[0]

    def extend(self, x_NTD: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """The same for T positions that follow S earlier ones; also their keys and values. mask: broadcastable to (N, heads, T, S + T)."""
        n, slots, width = x_NTD.shape
        query, key, value = self.qkv(self.norm1(x_NTD)).view(n, slots, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x_NTD = x_NTD + self.out(mixed.transpose(1, 2).reshape(n, slots, width))
        return x_NTD + self.down(F.gelu(self.up(self.norm2(x_NTD)))), (key, value)
