"""Entries of parameters that must not move, whatever the optimiser does.

frozen = FrozenEntries(model, masks)          # parameter name → bool mask in its shape
loss.backward()
frozen.zero_gradients()                       # before clipping, or locked gradients would set the norm
clip_grad_norm_(...); optimizer.step()
frozen.restore()                              # moments from before the mask, and weight decay, move what has no gradient
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown


class FrozenEntries:
    """Keeps entries of parameters at their present values, to the bit; see the module for where its two methods are called."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, mask in masks.items():
            if name not in parameters:
                raise unknown("parameter", name, list(parameters))
            parameter = parameters[name]
            if mask.shape != parameter.shape or mask.dtype != torch.bool:
                raise TutelageError(
                    f"The mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}; expected bool, {tuple(parameter.shape)}."
                )
            mask = mask.to(parameter.device)
            self._held.append((parameter, mask, parameter.detach()[mask].clone()))

    def zero_gradients(self) -> None:
        for parameter, mask, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, mask, values in self._held:
            parameter[mask] = values
