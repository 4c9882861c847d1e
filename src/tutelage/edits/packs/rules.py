"""Which tensor gets which operator: recipes of packs, in YAML.

    budget: 0.125                     # optional: the pack's share of the difference's bytes; the solver chooses what a rule leaves open
    tensors:
      - {match: "*embed_tokens*", operator: sparse_delta, keep: 0.1}
      - {match: "*.self_attn.*", operator: svd_delta, bits: "8:20,4:180,2:800"}
      - {match: "*.mlp.*", operator: [svd_delta, quantized_delta]}   # they compete; needs a budget
      - {match: "*.layers.0.*", operator: skip}                      # stays as in the base
      - {match: "*", operator: dense_delta}

The first rule whose pattern fits the whole name (shell-style) wins; a pattern that fits no tensor fails, and so does a tensor that fits no
rule. Operators that need a matrix leave vectors (norms, biases) to `dense_delta`.

Two recipes come along. `graftllm` is the paper's: embeddings and head pruned by magnitude, attention and MLP matrices as truncated SVDs in
8, 4 and 2 bits, the rest dense; MLP matrices keep the directions that hold `energy` 0.9 (β; its value is not in the paper's public
material). `best` lets all operators compete on every matrix, and so needs a budget.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.edits.packs.coding import Operator
from tutelage.edits.plan import match
from tutelage.edits.store import TensorInfo
from tutelage.errors import TutelageError, unknown
from tutelage.registry import edits

SKIP = "skip"
_WORDS = ("*embed*", "*wte*", "*wpe*", "*lm_head*", "*head.weight", "output.weight")
_ATTENTION = ("*attn*", "*attention*", "*q_proj*", "*k_proj*", "*v_proj*", "*o_proj*", "*qkv*")


@dataclass(frozen=True)
class Rule:
    """Tensors whose name fits `pattern` go to one of `operators` with `settings`; none of them: the tensor is left out."""

    pattern: str
    operators: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    must_match: bool = True


@dataclass(frozen=True)
class Rules:
    """A recipe: rules in order, the share of bytes if it names one, and the settings as written."""

    rules: tuple[Rule, ...]
    budget: float | None = None
    source: str = "recipe"

    def as_list(self) -> list[dict[str, Any]]:
        """For the record."""
        return [{"match": r.pattern, "operator": list(r.operators) or SKIP, **r.settings} for r in self.rules]

    def assign(self, infos: list[TensorInfo]) -> dict[str, Rule]:
        """The rule of each tensor; raises for a pattern without tensors and a tensor without rule."""
        names = [info.name for info in infos]
        for rule in self.rules:
            if rule.must_match:
                match([rule.pattern], names)
        return {info.name: self._rule(info) for info in infos}

    def _rule(self, info: TensorInfo) -> Rule:
        for rule in self.rules:
            if fnmatch.fnmatchcase(info.name, rule.pattern):
                if len(info.shape) < 2 and any(operator_class(name).matrices for name in rule.operators):
                    return Rule(rule.pattern, ("dense_delta",))
                return rule
        raise TutelageError(
            f"{self.source}: no rule matches the tensor {info.name}. End the list with a rule for '*'; 'skip' leaves it out."
        )


def operator_class(name: str) -> type[Operator]:
    """The operator registered under `name`."""
    target: Any = edits.get(name).target
    if not (isinstance(target, type) and issubclass(target, Operator)):
        raise unknown("operator", name, operator_names())
    return target


def operator_names() -> list[str]:
    found: list[tuple[str, Any]] = [(name, edits.get(name).target) for name in edits.names()]
    return [name for name, target in found if isinstance(target, type) and issubclass(target, Operator)]


GRAFTLLM = Rules(
    (
        *(Rule(p, ("sparse_delta",), must_match=False) for p in _WORDS),
        Rule("*norm*", ("dense_delta",), must_match=False),
        *(Rule(p, ("svd_delta",), must_match=False) for p in _ATTENTION),
        Rule("*", ("svd_delta",), must_match=False),
    ),
    source="graftllm",
)
BEST = Rules((Rule("*", ("svd_delta", "quantized_delta", "sparse_delta", "dense_delta"), must_match=False),), source="best")


def builtin(name: str, *, solved: bool) -> Rules:
    """`graftllm` or `best`; without a budget solver, graftllm's MLP rule is that of the energy."""
    if name == "best":
        return BEST
    if solved:
        return GRAFTLLM
    mlp = Rule("*", ("svd_delta",), {"energy": 0.9, "bits": "8:20,4:180,2:1200"}, must_match=False)
    return Rules((*GRAFTLLM.rules[:-1], mlp), source="graftllm")


def read_rules(recipe: str | Path | None, *, budget: float | None = None) -> Rules:
    """A recipe file, or `graftllm` (the default) or `best`; `budget` wins over the recipe's own.

    Raises `TutelageError` for an unknown operator or setting, and for what only a budget can decide where there is none.
    """
    if recipe is None or str(recipe) in ("graftllm", "best"):
        rules = builtin(str(recipe or "graftllm"), solved=budget is not None)
    else:
        rules = parse_rules(_load(Path(recipe)), source=str(recipe))
    share = budget if budget is not None else rules.budget
    if share is not None and not 0 < share <= 1:
        raise TutelageError(f"budget={share}: it is the pack's share of the difference's bytes, above 0 and at most 1, such as 0.125.")
    if share is None and any(len(rule.operators) > 1 for rule in rules.rules):
        raise TutelageError(
            f"{rules.source}: operators that compete for a tensor need a budget. Give --budget 0.125, or one operator a rule."
        )
    return Rules(rules.rules, share, rules.source)


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TutelageError(
            f"Cannot read the recipe {path}: {error.strerror or error}. Expected a YAML file, or one of: graftllm, best."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TutelageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None


def parse_rules(table: Any, *, source: str = "recipe") -> Rules:
    """Check a recipe that is already read; `source` names it in errors."""
    if not isinstance(table, dict) or not isinstance(table.get("tensors"), list) or not table["tensors"]:
        raise TutelageError(f"{source}: expected a mapping with 'tensors', a list of rules with match and operator, and perhaps 'budget'.")
    for key in table:
        if key not in ("tensors", "budget"):
            raise unknown(f"key of {source}:", str(key), ("tensors", "budget"))
    budget = table.get("budget")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float)):
        raise TutelageError(f"{source}: budget is a number such as 0.125, not {budget!r}.")
    return Rules(tuple(_parse_rule(entry, f"{source}: tensors[{i}]") for i, entry in enumerate(table["tensors"])), budget, source)


def _parse_rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict) or "match" not in entry or "operator" not in entry:
        raise TutelageError(f"{where} should be a mapping with match and operator, not {entry!r}.")
    settings = {key: value for key, value in entry.items() if key not in ("match", "operator")}
    given = entry["operator"]
    names = [str(name) for name in (given if isinstance(given, list) else [given])]
    if names == [SKIP]:
        if settings:
            raise TutelageError(f"{where}: skip has no settings, got {', '.join(settings)}.")
        return Rule(str(entry["match"]), ())
    if not names:
        raise TutelageError(f"{where} names no operator. Known: {', '.join([*operator_names(), SKIP])}.")
    for name in names:
        if name not in operator_names():
            raise unknown(f"operator of {where}:", name, [*operator_names(), SKIP])
        settings = edits.get(name).check(settings)
        operator_class(name)(**settings)  # lets it object to its settings
    return Rule(str(entry["match"]), tuple(names), settings)
