"""Packs on a live model: load, sum, unload to the bit, and send each prompt to the pack it needs.

    θ = θ_base + Σ_{i ∈ S} decode(pack_i)        (GraftLLM, arXiv 2505.18502, stage C; S is what a router activates)

The base's tensors are kept aside while packs are loaded and copied back when they go: nothing is subtracted, so unloading leaves no trace,
and what the base knows cannot be forgotten. A router answers with the name of one pack, or None: the base as it is. The paper sends a
task's prompts to its packs by lookup (`TaskRouter`) or by a small classifier (`PromptRouter`); its code was not released.

    packs = PackRack(model, {"math": "math.safetensors", "code": "code.safetensors"})
    with packs.on("math"):
        model.generate(...)
    answers = packs.route(prompts, [router(p) for p in prompts], run)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tutelage.edits._dtypes import STORAGE, Array, decode, encode, require_finite_bits
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits.apply import step_of, sum_of
from tutelage.edits.packs.pack import open_vector
from tutelage.edits.task_vector import TaskVector, wrong_base
from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.files import atomic_write

try:
    import torch
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

T = TypeVar("T")
R = TypeVar("R")


class PackRack:
    """Packs (or task vectors) at hand for a loaded model, any of them on at a time; `loaded` names those that are.

    Args:
        model: a torch module whose tensors bear the names of the checkpoint that the packs were made from, in the same number format.
        packs: names and packs, or their paths. Every pack must fit the model's weights to the bit, or `TutelageError` names the tensors.
    """

    def __init__(self, model: torch.nn.Module, packs: Mapping[str, TaskVector | str | Path]) -> None:
        self.model = model
        self.packs = {name: pack if isinstance(pack, TaskVector) else open_vector(pack) for name, pack in packs.items()}
        self.loaded: tuple[str, ...] = ()
        self.scale = 1.0
        self._tensors = dict(model.state_dict(keep_vars=True))
        self._kept: dict[str, torch.Tensor] = {}
        prints: dict[tuple[str, str], bool] = {}
        for pack in self.packs.values():
            missing = [name for name in pack.base if name not in self._tensors]
            differ = [n for n in pack.base if n not in missing and not self._matches(n, pack.base[n], prints)]
            if missing or differ:
                raise wrong_base(pack.path, Path("the loaded model"), missing + differ)

    def load(self, *names: str, scale: float = 1.0) -> None:
        """Put the base plus `scale` times the sum of the named packs into the model; packs that were loaded go first. None: the base."""
        for name in names:
            if name not in self.packs:
                raise unknown("pack", name, self.packs)
        self.unload()
        chosen = [self.packs[name] for name in names]
        try:
            for tensor in {n: None for pack in chosen for n in pack.names}:
                self._add(tensor, chosen, scale)
        except BaseException:
            self.unload()
            raise
        self.loaded, self.scale = names, scale

    def unload(self) -> None:
        """The base again, equal in every bit."""
        for name, kept in self._kept.items():
            self._tensors[name].data.copy_(kept)
        self._kept, self.loaded, self.scale = {}, (), 1.0

    @contextmanager
    def on(self, *names: str, scale: float = 1.0) -> Iterator[torch.nn.Module]:
        """The model with these packs inside the block, and with those that were loaded before it afterwards."""
        before, scale_before = self.loaded, self.scale
        self.load(*names, scale=scale)
        try:
            yield self.model
        finally:
            self.load(*before, scale=scale_before)

    def route(self, prompts: Sequence[T], routes: Sequence[str | None], run: Callable[[list[T]], Sequence[R]]) -> list[R]:
        """Call `run` once for each pack with the prompts sent to it, that pack alone being loaded; the results in the order of the prompts.

        routes: the name of a pack for each prompt, or None for the base.
        """
        if len(routes) != len(prompts):
            raise TutelageError(f"There are {len(prompts)} prompts and {len(routes)} routes; every prompt needs one.")
        results: dict[int, R] = {}
        for name in dict.fromkeys(routes):
            rows = [i for i, route in enumerate(routes) if route == name]
            with self.on(*([] if name is None else [name])):
                answers = run([prompts[i] for i in rows])
            if len(answers) != len(rows):
                raise TutelageError(f"run gave {len(answers)} results for {len(rows)} prompts; expected one each.")
            results.update(zip(rows, answers, strict=True))
        return [results[i] for i in range(len(prompts))]

    def _matches(self, name: str, expected: str, known: dict[tuple[str, str], bool]) -> bool:
        if (name, expected) not in known:
            stored, dtype = _bits(self._tensors[name])
            info = TensorInfo(name, dtype, tuple(self._tensors[name].shape), Path(), 0, stored.nbytes)
            known[name, expected] = Fingerprint(info, expected).over([stored]).matches(expected)
        return known[name, expected]

    def _add(self, name: str, packs: list[TaskVector], scale: float) -> None:
        tensor = self._tensors[name]
        stored, dtype = _bits(tensor)
        delta = next(sum_of(packs, name, stored.size))
        numbers = decode(stored, dtype)
        result = encode(numbers + step_of(delta, scale, dtype), dtype)
        require_finite_bits(result, dtype, name, f"the loaded model (it does not fit {dtype})")
        changed = torch.from_numpy(result.view(np.int16) if dtype == "BF16" else result)
        self._kept[name] = tensor.detach().clone()
        tensor.data.copy_((changed.view(torch.bfloat16) if dtype == "BF16" else changed).reshape(tensor.shape))


def _bits(tensor: torch.Tensor) -> tuple[Array, str]:
    """A tensor's stored bits, flat, and its number format in safetensors' words."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16), "BF16"
    array = flat.numpy()
    return array, next(code for code, dtype in STORAGE.items() if np.dtype(dtype) == array.dtype and code != "BF16")


# Routers ---------------------------------------------------------------------------------------------------------------------------------


class TaskRouter:
    """The pack of a task label by lookup.

    Args:
        packs: task label -> pack, or None for the base.
        strict: a label that is not listed raises; otherwise it gets the base.
    """

    def __init__(self, packs: Mapping[str, str | None], *, strict: bool = True) -> None:
        self.packs, self.strict = dict(packs), strict

    def __call__(self, label: str) -> str | None:
        if self.strict and label not in self.packs:
            raise unknown("task", label, self.packs)
        return self.packs.get(label)


class PromptRouter:
    """The likeliest pack of a prompt by logistic regression on a feature vector; abstains where it is not sure.

        p(pack | x) = softmax(W (x − μ)/σ + b);   pack = argmax p if max p ≥ threshold, else None (the base)

    The paper's router is a small feed-forward classifier on the prompt of which no more is known; abstention is this library's. Examples
    labelled None teach the router what belongs to the base.

    Args:
        threshold: the least probability with which a prompt leaves the base.
        regularization: C of scikit-learn's `LogisticRegression`; smaller is smoother.
    """

    def __init__(self, *, threshold: float = 0.8, regularization: float = 1.0) -> None:
        if not 0 <= threshold <= 1 or regularization <= 0:
            raise TutelageError(f"threshold={threshold} lies in [0, 1], and regularization={regularization} is positive.")
        self.threshold, self.regularization = threshold, regularization
        self.labels: list[str | None] = []

    def fit(self, features_ND: Array, labels: Sequence[str | None]) -> PromptRouter:
        """Learn from prompts whose pack is known: features (N, D), and N names of packs or None."""
        from sklearn.linear_model import LogisticRegression

        features_ND = self._check(features_ND, len(labels))
        self.labels = sorted(set(labels), key=lambda label: (label is None, label or ""))
        if len(self.labels) < 2:
            raise TutelageError(f"A router chooses between two packs at least (None, the base, counts); got labels {self.labels}.")
        self.mean_D = features_ND.mean(axis=0)
        self.scale_D = np.where((spread_D := features_ND.std(axis=0)) > 0, spread_D, 1)
        numbers_N = [self.labels.index(label) for label in labels]
        model = LogisticRegression(C=self.regularization, max_iter=1000).fit((features_ND - self.mean_D) / self.scale_D, numbers_N)
        weight, bias = model.coef_, model.intercept_
        if len(self.labels) == 2:  # scikit-learn gives the second class's log-odds alone
            weight, bias = np.stack([0 * weight[0], weight[0]]), np.array([0.0, bias[0]])
        self.weight_LD, self.bias_L = weight, bias
        return self

    def probabilities(self, features_ND: Array) -> Array:
        """(N, L) in the order of `labels`."""
        if not self.labels:
            raise TutelageError("The router has not learned anything yet: call fit(features, labels) first, or load one.")
        logit_NL = (self._check(features_ND) - self.mean_D) / self.scale_D @ self.weight_LD.T + self.bias_L
        share_NL = np.exp(logit_NL - logit_NL.max(axis=1, keepdims=True))
        return share_NL / share_NL.sum(axis=1, keepdims=True)

    def __call__(self, features_ND: Array) -> list[str | None]:
        """The pack of each prompt, or None."""
        share_NL = self.probabilities(features_ND)
        return [self.labels[k] if p >= self.threshold else None for k, p in zip(share_NL.argmax(axis=1), share_NL.max(axis=1), strict=True)]

    def save(self, path: str | Path) -> None:
        """Write the router as JSON."""
        if not self.labels:
            raise TutelageError("The router has not learned anything yet: there is nothing to save.")
        arrays = {key: getattr(self, key).tolist() for key in ("mean_D", "scale_D", "weight_LD", "bias_L")}
        record = {"format": 1, "threshold": self.threshold, "regularization": self.regularization, "labels": self.labels, **arrays}
        atomic_write(path, json.dumps(record))

    @classmethod
    def load(cls, path: str | Path) -> PromptRouter:
        """A router that was saved."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if record["format"] > 1:
                raise TutelageError(f"{path} is a router of format {record['format']}, and this version reads up to 1. Update tutelage.")
            router = cls(threshold=record["threshold"], regularization=record["regularization"])
            router.labels = record["labels"]
            for key in ("mean_D", "scale_D", "weight_LD", "bias_L"):
                setattr(router, key, np.array(record[key]))
        except (OSError, KeyError, TypeError) as error:
            raise TutelageError(f"Cannot read a router from {path}: {error}.") from None
        except json.JSONDecodeError as error:
            raise TutelageError(f"{path} is not a router: {error}.") from None
        return router

    def _check(self, features_ND: Array, rows: int | None = None) -> Array:
        features_ND = np.asarray(features_ND, dtype=np.float64)
        if features_ND.ndim != 2 or not np.isfinite(features_ND).all() or rows not in (None, len(features_ND)):
            raise TutelageError(
                f"Features are a finite (prompts, dimensions) array with a row for each label; got the shape {features_ND.shape}"
                + (f" and {rows} labels." if rows is not None else ", or NaN.")
            )
        return features_ND


def mean_embeddings(model: Any, token_NT: torch.Tensor, mask_NT: torch.Tensor | None = None) -> Array:
    """The features of prompts: the mean of their tokens' input embeddings, (N, D) in float64.

    Args:
        model: a Hugging Face model; only its input embeddings are used.
        token_NT: token numbers. mask_NT: 1 at tokens that count, as a tokenizer's attention mask; None for all.

    Features move with the embeddings: take them with the base loaded, in fitting as in use.
    """
    with torch.no_grad():
        x_NTD = model.get_input_embeddings()(token_NT).double()
        weight_NT = torch.ones_like(token_NT, dtype=torch.float64) if mask_NT is None else mask_NT.double()
        total_N1 = weight_NT.sum(dim=1, keepdim=True)
        if bool((total_N1 == 0).any()):
            raise TutelageError("A prompt has no token that counts: its mask is all zero.")
        return np.asarray(((x_NTD * weight_NT[..., None]).sum(dim=1) / total_N1).cpu().numpy())
