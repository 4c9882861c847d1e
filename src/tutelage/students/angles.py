"""Angle concentration: how much the directions of a prompt's hidden states agree, and where in a model those states are found.

Source: Wang et al., "Angles Don't Lie: Unlocking Training-Efficient RL Through the Model's Own Signals" (GAIN-RL, arXiv 2506.02281). For a
prompt of N prefix tokens (system prompt, worked examples, template) and M question tokens, with u = x / |x|:

    C_intra = 1 / M^2  sum_ij u_i . u_j  over pairs of question tokens     = |sum u|^2 / M^2
    C_inter = 1 / (M N) sum_ij u_i . u_j over question x prefix            = (sum_question u) . (sum_prefix u) / (M N)

Motivation, exact for a linear map a = W x with upstream gradients d: |grad W|^2 = sum_ij |x_i| |x_j| cos(i, j) (d_i . d_j): aligned tokens
add up. Written as sums of unit vectors the means cost O(T D) and no T x T matrix. The pairs i = j are part of the paper's C_intra and put
1/M of it there by arithmetic alone, so that short questions score higher whatever the model; `include_diagonal=False` leaves them out.

Departures from the release: it took a lower triangle of the cosines, sliced by constants of one template, and (in the verl port) normalised
over tokens instead of features. Array suffixes: `B` prompts, `T` tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from tutelage.errors import TutelageError, missing_extra, unknown

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.students.prompts import OUTSIDE, PREFIX, QUESTION

SiteRule = Literal["mlp_input", "block_output"]
SIGNALS = ("angle_concentration", "off_diagonal_concentration")
"""The signals made of angles: C with the pairs of a token with itself, as in the paper, and without them."""

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc1")


class PairSums(NamedTuple):
    """What the two means are made of, (B,) each: |sum u|^2 of the question, its product with the prefix, and the counts.

    `own_B` counts the question's tokens whose state is not the zero vector; those have no direction, and their cosines count as 0.
    """

    square_B: Tensor
    cross_B: Tensor
    own_B: Tensor
    question_B: Tensor
    prefix_B: Tensor

    def terms(self, *, include_diagonal: bool = True, weights: tuple[float, float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """(C_intra, C_inter), see `angle_concentration`."""
        m_B = self.question_B
        if include_diagonal:
            intra_B = self.square_B / m_B**2
        else:
            pairs_B = m_B * (m_B - 1)
            intra_B = torch.where(pairs_B > 0, (self.square_B - self.own_B) / pairs_B, torch.nan)  # a residue over 0 is no number
        inter_B = torch.where(self.prefix_B > 0, self.cross_B / (m_B * self.prefix_B.clamp(min=1)), 0.0)
        return weights[0] * intra_B, weights[1] * inter_B

    def signals(self) -> dict[str, Tensor]:
        """C = C_intra + C_inter under its names in `SIGNALS`, (B,) each."""
        return {name: sum(self.terms(include_diagonal=i == 0), torch.zeros(())) for i, name in enumerate(SIGNALS)}


def pair_sums(x_BTD: Tensor, segment_BT: Tensor) -> PairSums:
    """The sums behind both means of `angle_concentration`, in float32 at least."""
    x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    norm_BT = torch.linalg.vector_norm(x_BTD, dim=-1)
    live_BT = norm_BT > 0
    member_B2T = torch.stack([segment_BT == PREFIX, segment_BT == QUESTION], dim=1)
    weight_B2T = torch.where(member_B2T & live_BT.unsqueeze(1), 1 / norm_BT.unsqueeze(1), 0.0)
    if not torch.isfinite(norm_BT).all():  # what stands under padding may be NaN, and 0 * NaN is NaN
        x_BTD = torch.where((segment_BT != OUTSIDE).unsqueeze(-1), x_BTD, 0.0)
    prefix_BD, question_BD = torch.bmm(weight_B2T, x_BTD).unbind(dim=1)
    count_B2 = member_B2T.sum(dim=2)
    return PairSums(
        square_B=question_BD.square().sum(dim=-1),
        cross_B=(question_BD * prefix_BD).sum(dim=-1),
        own_B=(member_B2T[:, 1] & live_BT).sum(dim=1),
        question_B=count_B2[:, 1],
        prefix_B=count_B2[:, 0],
    )


def angle_concentration(
    x_BTD: Tensor, segment_BT: Tensor, *, include_diagonal: bool = True, weights: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Mean cosines within the question and between question and prefix, (B,) each; C is their sum.

    Args:
        x_BTD: hidden states.
        segment_BT: `OUTSIDE`, `PREFIX` or `QUESTION` for each token; a bool mask of question tokens will not do.
        include_diagonal: count each token's cosine with itself, as the paper does; without it the mean runs over M (M - 1) pairs.
        weights: multiply the two terms (the release's script used 1 and 8).

    Returns:
        C_intra, NaN for a question without a pair (no token; or one token, without the diagonal), and C_inter, 0 without a prefix. A token
        whose state is the zero vector has no direction; its cosines count as 0.
    """
    if x_BTD.ndim != 3 or segment_BT.shape != x_BTD.shape[:2] or segment_BT.dtype == torch.bool:
        raise TutelageError(
            f"angle_concentration takes states (B, T, D) and integer segments (B, T) of 0, 1 and 2; got {tuple(x_BTD.shape)} and "
            f"{segment_BT.dtype} {tuple(segment_BT.shape)}. For one segment: torch.where(mask_BT, QUESTION, OUTSIDE)."
        )
    return pair_sums(x_BTD, segment_BT).terms(include_diagonal=include_diagonal, weights=weights)


# Where the states are --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A place in a model whose states are read: what goes into `module`, or (`after`) what comes out. `name` is the rule in words."""

    module: nn.Module
    after: bool
    name: str


def find_site(model: Any, *, layer: int = -1, site: SiteRule = "mlp_input") -> Site:
    """The states that the paper reads, in any Hugging Face decoder: by default the input of the last layer's MLP.

    Args:
        model: a causal language model; adapters and wrappers that keep its modules are seen through.
        layer: of the decoder layers, negative from the end.
        site: "mlp_input" (after the norm that follows attention), or "block_output" (the residual stream after the layer, which for the
            last layer is before the final norm).

    Raises:
        TutelageError: the model has no list of decoder layers as long as its configuration says, or the layer no MLP that is known by name.
    """
    if site not in get_args(SiteRule):
        raise unknown("site of hidden states", site, get_args(SiteRule))
    path, layers = _decoder_layers(model)
    if not -len(layers) <= layer < len(layers):
        raise TutelageError(
            f"layer={layer}, but {type(model).__name__} has {len(layers)} decoder layers, {-len(layers)} to {len(layers) - 1}."
        )
    number = layer % len(layers)
    block = layers[number]
    if site == "block_output":
        return Site(block, True, f"output of layer {number} of {len(layers)}")
    for name in _MLP_NAMES:
        if isinstance(getattr(block, name, None), nn.Module):
            return Site(getattr(block, name), False, f"input of {name} of layer {number} of {len(layers)}")
    children = ", ".join(name for name, _ in block.named_children())
    raise TutelageError(
        f"{path}.{number} of {type(model).__name__} has no MLP known by name ({', '.join(_MLP_NAMES)}); it consists of {children}. Read "
        "the layer's output instead: site='block_output'."
    )


def _decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its path; a decoder's own before that of any tower beside it."""
    config = getattr(model, "config", None)
    text = config if config is None or not hasattr(config, "get_text_config") else config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    found: list[tuple[str, nn.ModuleList]] = []
    if isinstance(model, nn.Module) and depth:
        found = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise TutelageError(
            f"{type(model).__name__} has no list of {depth or 'its'} decoder layers, so there are no hidden states to read. Expected a "
            "Hugging Face causal language model with its layers in one ModuleList and config.num_hidden_layers saying how many."
        )
    aside = ("vision", "visual", "audio", "encoder.")
    return next((one for one in found if not any(word in one[0] for word in aside)), found[0])


@contextmanager
def listening(site: Site) -> Iterator[list[Tensor]]:
    """What passes the site during the block, one detached tensor a forward pass."""
    heard: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.append((args[0] if args else next(iter(kwargs.values()))).detach())

    def after(module: nn.Module, args: Any, output: Any) -> None:
        heard.append((output if isinstance(output, Tensor) else output[0]).detach())

    hook = site.module.register_forward_hook(after) if site.after else site.module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield heard
    finally:
        hook.remove()
