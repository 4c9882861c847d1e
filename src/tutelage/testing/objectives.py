"""The battery that every objective must pass.

    from tutelage.testing.objectives import check_objective

    def test_mine():
        check_objective(lambda: MyObjective(strength=0.1))

It builds a random batch from the columns that the objective requires and asserts what `tutelage.objectives.contract` promises. Everything
is in double precision, so "equal" means within 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.objectives.aggregation import group_tokens
from tutelage.objectives.contract import Objective

VOCABULARY, TOP_K = 5, 3
FROZEN = ("old_", "ref_", "teacher_", "advantage", "mask")
TOLERANCE = 1e-9


def check_objective(
    factory: Callable[[], Objective],
    *,
    batch: Mapping[str, Tensor] | None = None,
    policy_only: Mapping[str, Any] | None = None,
    finite_differences: bool = True,
    max_length: int = 16,
    seed: int = 0,
) -> None:
    """Assert the contract of an objective: requirements, purity, partitions, masks, padding, order, zero advantage, gradient, precision.

    Args:
        factory: builds the objective, without arguments.
        batch: columns to use instead of random ones; float64, ending in `_BT`, `_BTV`, `_BTK`, `_BJ` or `_B`, at least three rows.
        policy_only: hyperparameters that switch off every term but the policy gradient, for the check that zero advantage means zero
            gradient (made for objectives that read an advantage).
        finite_differences: turn off for objectives that stop gradients by design (CISPO, straight-through estimators).
        max_length: the constant passed to `denominators_of`.
        seed: of the random batch and partitions.

    Raises:
        AssertionError: the broken promise.
    """
    objective = factory()
    assert isinstance(objective, Objective), "an objective has `requires`, `denominators_of` and `__call__`"
    columns = dict(batch) if batch is not None else random_batch(objective.requires, seed=seed)
    counts = objective.denominators_of(columns, max_length=max_length)
    whole = evaluate(objective, columns, counts)
    _check_requires(objective, columns, counts, whole)
    _check_pure(objective, columns, counts, whole)
    _check_partitions(objective, columns, counts, whole, seed)
    _check_masks(objective, columns, counts, whole)
    _check_padding(objective, columns, max_length, whole)
    _check_half_precision(objective, columns, counts)
    if any(_bare(key).startswith("advantage") for key in columns):
        _check_zero_advantage(objective, columns, counts, policy_only or {})
    if finite_differences:
        _check_finite_differences(objective, columns, counts)


def random_batch(keys: Iterable[str], *, rows: int = 7, tokens: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Float64 columns for `keys`: ragged lengths, a hole, a fully masked row, and ratios on both sides of the usual clips.

    The columns of a source, `demonstrations/logp_BT`, are other numbers of the same shape, their rows in reverse order.

    Raises:
        TutelageError: a key whose shape its name does not tell.
    """
    sources = sorted({_source(key) for key in keys} - {""})
    if sources:
        found = random_batch([key for key in keys if not _source(key)], rows=rows, tokens=tokens, seed=seed)
        for place, source in enumerate(sources, start=1):
            own = [key.removeprefix(source) for key in keys if _source(key) == source]
            drawn = random_batch(own, rows=rows, tokens=tokens, seed=seed + place)
            found |= {source + key: x.flip(0) for key, x in drawn.items()}
        return found
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length_B = torch.arange(rows) % (tokens + 1)  # row 0 is fully masked
    mask_BT = torch.arange(tokens) < length_B.unsqueeze(1)
    mask_BT[-1, 1] = False
    group_B = torch.arange(rows) // 3
    logp_BT = -normal(rows, tokens).abs() - 0.1
    batch: dict[str, Tensor] = {}
    for key in sorted(keys):
        if key == "mask_BT":
            batch[key] = mask_BT
        elif key.endswith("mask_BT"):
            batch[key] = torch.rand(rows, tokens, generator=generator) < 0.5
        elif key == "group_tokens_B":
            batch |= {"group_B": group_B, key: group_tokens(mask_BT, group_B)}
        elif key.endswith("logp_BTV"):
            batch[key] = normal(rows, tokens, VOCABULARY).log_softmax(-1)
        elif key.endswith("top_ids_BTK"):
            batch[key] = normal(rows, tokens, VOCABULARY).argsort(-1)[..., :TOP_K]
        elif key.endswith("top_logp_BTK"):
            batch[key] = normal(rows, tokens, VOCABULARY).log_softmax(-1)[..., :TOP_K]
        elif key.endswith("logp_BT"):
            batch[key] = logp_BT if key == "logp_BT" else logp_BT + 0.4 * normal(rows, tokens)
        elif key.endswith("entropy_BT"):
            batch[key] = normal(rows, tokens).abs()
        elif key.endswith("_BT"):
            batch[key] = normal(rows, tokens)
        elif key.endswith("_BJ"):
            batch[key] = logp_BT.sum(dim=1, keepdim=True) + normal(rows, 3)
        elif key.endswith("_B"):
            batch[key] = normal(rows)
        else:
            raise TutelageError(f"The shape of the column {key!r} cannot be told from its name; pass `batch=` to check_objective.")
    return batch


def evaluate(
    objective: Objective,
    batch: Mapping[str, Tensor],
    denominators: Mapping[str, Tensor],
    parts: Sequence[Tensor] | None = None,
    **hyper: Any,
) -> dict[str, Tensor]:
    """Loss, stats and gradients of the whole batch, or summed over `parts` (row indices), each part trimmed to its own longest row.

    Keys are `loss`, `stats/<name>` and `grad/<column>`; a column without gradient is absent.
    """
    leaves = {key: x.detach().clone().requires_grad_(x.is_floating_point()) for key, x in batch.items()}
    result: dict[str, Tensor] = {}
    for rows_P in parts if parts is not None else [torch.arange(len(next(iter(batch.values()))))]:
        part = {key: x[rows_P] for key, x in leaves.items()}
        loss, stats = objective(trim(part) if parts is not None else part, denominators=denominators, **hyper)
        assert loss.dim() == 0, f"the loss is a scalar, and came as {tuple(loss.shape)}"
        if loss.requires_grad:
            loss.backward()
        for name, value in {"loss": loss.detach(), **{f"stats/{key}": x for key, x in stats.items()}}.items():
            result[name] = result.get(name, torch.zeros_like(value)) + value
    return result | {f"grad/{key}": x.grad for key, x in leaves.items() if x.grad is not None}


def trim(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the `_BT` columns behind the last token that any mask lets through, as a loader does with a micro-batch (at least one column)."""
    width = {}
    for source in {_source(key) for key in batch}:
        used_T = _used(batch, source).any(dim=0)
        width[source] = max(1, int(used_T.nonzero().max()) + 1 if used_T.any() else 1)
    return {key: x[:, : width[_source(key)]] if _wide(key) else x for key, x in batch.items()}


def _source(key: str) -> str:
    """The prefix of a source's column with its slash, `demonstrations/`; empty for the batch's own."""
    return key[: key.rfind("/") + 1]


def _bare(key: str) -> str:
    """The column's name without its source."""
    return key.removeprefix(_source(key))


def _frozen(key: str) -> bool:
    return _bare(key).startswith(FROZEN)


def _wide(key: str) -> bool:
    """Whether the column has a token axis: `_BT`, `_BTV`, `_BTK`."""
    return key.rpartition("_")[2].startswith("BT")


def _trained(batch: Mapping[str, Tensor]) -> list[str]:
    """The columns that may carry a gradient."""
    return [key for key, x in batch.items() if x.is_floating_point() and _wide(key) and not _frozen(key)]


def _used(batch: Mapping[str, Tensor], source: str) -> Tensor:
    """Where any mask of the source lets a token through; everywhere without masks."""
    own = {key: x for key, x in batch.items() if _source(key) == source}
    masks = [x.bool() for key, x in own.items() if key.endswith("mask_BT")]
    if masks:
        return torch.stack(masks).any(dim=0)
    return torch.ones(next((x for key, x in own.items() if _wide(key)), next(iter(own.values()))).shape[:2], dtype=torch.bool)


def _same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    assert got.keys() == expected.keys(), f"{what} changes which results there are: {sorted(got)} against {sorted(expected)}"
    for name, value in expected.items():
        close = torch.allclose(got[name], value, rtol=TOLERANCE, atol=TOLERANCE)
        assert close, f"{what} changes {name} by up to {(got[name] - value).abs().max().item():.3g}"


def _check_requires(objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    only = {key: x for key, x in batch.items() if key in objective.requires}
    _same(evaluate(objective, only, counts), whole, "a batch of the required columns alone")
    for key in objective.requires:
        less = {name: x for name, x in only.items() if name != key}
        message = _error_without(objective, less, counts)
        assert message, f"the column {key!r} is declared in `requires` but its absence goes unnoticed"
        assert key in message, f"the error for the missing column {key!r} does not name it: {message}"


def _error_without(objective: Objective, less: dict[str, Tensor], counts: Mapping[str, Tensor]) -> str:
    try:
        objective(less, denominators=counts)
    except TutelageError as error:
        return str(error)
    except KeyError as error:
        raise AssertionError(f"the missing column {error} must raise TutelageError (see check_batch), not KeyError") from error
    return ""


def _check_pure(objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    before = {key: x.clone() for key, x in batch.items()}
    state = torch.random.get_rng_state()
    leaves = {key: x.detach().clone().requires_grad_() if key in _trained(batch) else x for key, x in batch.items()}
    _, stats = objective(leaves, denominators=counts)
    assert torch.equal(torch.random.get_rng_state(), state), "the objective draws from the global random generator"
    assert all(torch.equal(batch[key], x) for key, x in before.items()), "the objective changes its batch"
    assert not any(value.requires_grad for value in stats.values()), "stats must be detached"
    _same(evaluate(objective, batch, counts), whole, "a second call")
    for name in whole:
        key = name.removeprefix("grad/")
        assert not (name.startswith("grad/") and _frozen(key)), f"a gradient flows into {key}"


def _check_partitions(
    objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor], whole: Mapping[str, Tensor], seed: int
) -> None:
    rows = len(next(iter(batch.values())))
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(rows, generator=generator)
    for size in (1, 2, rows):
        _same(evaluate(objective, batch, counts, shuffled.split(size)), whole, f"a split into micro-batches of {size} in another order")
    owner_B = torch.randint(3, (rows,), generator=generator)
    parts = [(owner_B == rank).nonzero().flatten() for rank in range(3)]
    _same(evaluate(objective, batch, counts, [p for p in parts if len(p)]), whole, "an uneven partition over processes")


def _check_masks(objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    used = {source: _used(batch, source) for source in {_source(key) for key in batch}}
    filled = {
        key: x.masked_fill(~used[_source(key)].view(*x.shape[:2], *[1] * (x.ndim - 2)), torch.nan)
        if _wide(key) and x.is_floating_point()
        else x
        for key, x in batch.items()
    }
    _same(evaluate(objective, filled, counts), whole, "NaN at masked positions")
    for name, grad in whole.items():
        if name.startswith("grad/") and _wide(name):
            assert (grad[~used[_source(name.removeprefix("grad/"))]] == 0).all(), f"{name} is not zero at masked positions"


def _check_padding(objective: Objective, batch: dict[str, Tensor], max_length: int, whole: Mapping[str, Tensor]) -> None:
    width = next(x.shape[1] for key, x in batch.items() if _wide(key))
    wider = {
        key: torch.cat([x, torch.full_like(x[:, :1], torch.nan if x.is_floating_point() else 0).repeat_interleave(3, dim=1)], dim=1)
        if _wide(key)
        else x
        for key, x in batch.items()
    }
    for key in wider:
        if key.endswith("mask_BT"):
            wider[key][:, width:] = 0
    result = evaluate(objective, wider, objective.denominators_of(wider, max_length=max_length))
    cut = {name: x[:, :width] if name.startswith("grad/") and _wide(name) else x for name, x in result.items()}
    _same(cut, whole, "padding")


def _check_half_precision(objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor]) -> None:
    half = {key: x.to(torch.bfloat16) if x.is_floating_point() else x for key, x in batch.items()}
    loss, _ = objective(half, denominators=counts)
    assert loss.dtype == torch.float32, f"half-precision columns must be reduced in single precision, and the loss came in {loss.dtype}"
    assert loss.isfinite(), "half-precision columns give a loss that is not finite"


def _check_zero_advantage(
    objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor], policy_only: Mapping[str, Any]
) -> None:
    idle = {key: torch.zeros_like(x) if _bare(key).startswith("advantage") else x for key, x in batch.items()}
    for name, value in evaluate(objective, idle, counts, **policy_only).items():
        assert not name.startswith("grad/") or (value == 0).all(), f"zero advantage leaves a policy gradient: {name} = {value}"


def _check_finite_differences(objective: Objective, batch: dict[str, Tensor], counts: Mapping[str, Tensor]) -> None:
    for key in _trained(batch):
        leaf = batch[key].detach().clone().requires_grad_()
        torch.autograd.gradcheck(lambda x, key=key: objective({**batch, key: x}, denominators=counts)[0], (leaf,), atol=1e-6, rtol=1e-5)
