"""CKU, constrained knowledge unlearning (arXiv 2505.18588): lock the neurons that carry useful knowledge, unlearn with the others.

    scores of the feed-forward neurons on useful text → the top `rate` of each block is locked → gradient ascent on what is to be forgotten,
    with the gradients of locked neurons zeroed, and a retain term on the useful text

Only the feed-forward blocks of some layers train; attention, norms and embeddings are frozen, else the lock is bypassed. The paper's text
was not available: the score formula, the loss weights and the retain term are reconstructions and therefore switches. Its summaries
agree on the locking rate (0.8) and disagree on the layers. Locking is by block, since the scale of gradients differs with depth; random
and inverse locks are the controls, which every report should show beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from tutelage.model_edits.neurons import Kind, feed_forwards, lock_mask, neuron_scores
from tutelage.registry import edits


@edits.register("cku")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cku:
    """Unlearning with the neurons of useful knowledge locked (CKU, arXiv 2505.18588).

    Args:
        rate: the share of each block's neurons that is locked (the paper's NLR).
        depth: which feed-forward blocks train, as shares of their number; the default is layers 8 to 12 of 32.
        score: how neurons are scored on the useful text, see `neurons.neuron_scores`; `random` is the control.
        inverse: lock the lowest instead: the other control.
        seed: of `random`.
    """

    rate: float = 0.8
    depth: tuple[float, float] = (0.25, 0.4)
    score: Kind = "snip"
    inverse: bool = False
    seed: int = 0

    def constraints(self, model: nn.Module, useful: Callable[[], Iterable[Mapping[str, Tensor]]]) -> dict[str, Any]:
        """The arguments `trainable` and `frozen` of `Unlearning` for this model, with neurons scored on `useful` batches (a function
        that returns them anew; labels are needed for `snip`)."""
        blocks = feed_forwards(model, self.depth)
        locked = lock_mask(neuron_scores(model, useful, blocks, kind=self.score, seed=self.seed), self.rate, inverse=self.inverse)
        frozen = {name: mask for block in blocks for name, mask in block.entries(locked[block.name]).items()}
        return {"trainable": list(frozen), "frozen": frozen}
