"""The sizes of the demo model, apart from torch, so that the exporter needs none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model. `heads` query heads share `kv_heads` key and value heads."""

    vocabulary: int = 1280
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 640
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return self.hidden // self.heads
