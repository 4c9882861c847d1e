"""Reads the angle concentration of every prompt of a pool with a stock Hugging Face model: one forward pass each, nothing generated.

    columns = concentrations(model, tokenizer, pool, cache="concentrations")
    pool.columns.update(columns)
    curriculum("gain-rl", pool, scores="angle_concentration")

Prompts are read in chunks, within a chunk in batches of like length; only the states at one site of one layer are kept, and the language
head computes a single position. With `cache`, each finished chunk is a file, so that a killed run goes on where it stopped; the folder's
manifest names model, layer rule, tokenizer and prompts, and a cache of anything else is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra
from tutelage.files import atomic_write
from tutelage.models import evaluating
from tutelage.pools import TaskPool
from tutelage.state import load_state, save_state

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.students.angles import PairSums, Site, SiteRule, find_site, listening, pair_sums
from tutelage.students.prompts import PromptTokens, Tokens, prompts_hash

Columns = dict[str, NDArray[Any]]
FORMAT = "tutelage-concentrations-1"
MANIFEST = "manifest.json"


def concentrations(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    *,
    layer: int = -1,
    site: SiteRule = "mlp_input",
    batch_tokens: int = 8192,
    template: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    chunk: int = 2048,
    progress: bool = True,
) -> Columns:
    """Columns with one number per prompt, ready to be columns of a pool.

    Args:
        model, tokenizer: a causal language model and a fast tokenizer.
        prompts: texts or conversations: a sequence, a `datasets.Dataset` or a `TaskPool` with a column "prompt".
        layer, site: where the hidden states are read, see `tutelage.students.angles.find_site`.
        batch_tokens: tokens of a batch, padding included, at most (one prompt may be longer).
        template: further arguments of `apply_chat_template`.
        cache: a folder for the finished chunks of `chunk` prompts each.
        progress: show a bar, where there is a terminal.

    Returns:
        angle_concentration (C_intra + C_inter as in the paper), off_diagonal_concentration (without each token's cosine with itself),
        inter_concentration (C_inter alone), prompt_length and prefix_length in tokens; float32 and int32, NaN where there is no pair.

    Raises:
        TutelageError: a model without such states, a prompt that is neither text nor conversation, or a cache of another model, layer
        rule, tokenizer or set of prompts.
    """
    column, place = _prompts_of(prompts), find_site(model, layer=layer, site=site)
    encode = PromptTokens(tokenizer, template)
    store = None
    if cache is not None:
        identity = {"model": model_fingerprint(model), "layer": place.name, "tokenizer": encode.fingerprint}
        store = _Cache(Path(cache), {**identity, "prompts": prompts_hash(column), "rows": len(column), "chunk": chunk})
    parts = []
    with evaluating(model), bar(len(column), progress) as advance:
        for number, start in enumerate(range(0, len(column), chunk)):
            rows = range(start, min(start + chunk, len(column)))
            part = store.load(number, len(rows)) if store else None
            if part is None:
                part = _read(model, place, encode([column[row] for row in rows]), batch_tokens, advance)
                if store:
                    store.save(number, part)
            else:
                advance(len(rows))
            parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _prompts_of(prompts: Any) -> Sequence[Any]:
    column = prompts
    if isinstance(prompts, TaskPool) or hasattr(prompts, "column_names"):
        names = prompts.columns if isinstance(prompts, TaskPool) else prompts.column_names
        if "prompt" not in names:
            raise TutelageError(f"There is no column 'prompt' to read; the columns are {', '.join(names) or 'none'}. Rename yours to it.")
        column = prompts.columns["prompt"] if isinstance(prompts, TaskPool) else prompts["prompt"]
    if isinstance(column, str) or len(column) == 0:
        raise TutelageError(f"Expected a sequence of at least one prompt; got {column!r}.")
    return column


def _read(model: Any, site: Site, tokens: list[Tokens], batch_tokens: int, advance: Any) -> Columns:
    """The columns of one chunk, its rows in order."""
    length_N = np.array([len(t.id_T) for t in tokens])
    sums = {name: np.empty(len(tokens), dtype=np.float32) for name in ("angle_concentration", "off_diagonal_concentration")}
    inter_N = np.empty(len(tokens), dtype=np.float32)
    prefix_N = np.empty(len(tokens), dtype=np.int32)
    for rows_b in like_lengths(length_N, batch_tokens):
        batch = read_states(model, site, [tokens[row].id_T for row in rows_b], [tokens[row].segment_T for row in rows_b])
        for name, value_B in batch.signals().items():
            sums[name][rows_b] = value_B.cpu().numpy()
        inter_N[rows_b] = batch.terms()[1].cpu().numpy()
        prefix_N[rows_b] = batch.prefix_B.cpu().numpy()
        advance(len(rows_b))
    return {**sums, "inter_concentration": inter_N, "prompt_length": length_N.astype(np.int32), "prefix_length": prefix_N}


def like_lengths(length_N: NDArray[Any], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches of like length, the longest first, each of at most `batch_tokens` tokens with its padding."""
    order_N = np.argsort(-length_N, kind="stable")
    start = 0
    while start < len(order_N):
        size = max(batch_tokens // max(int(length_N[order_N[start]]), 1), 1)
        yield order_N[start : start + size]
        start += size


def read_states(model: Any, site: Site, ids: Sequence[Any], segments: Sequence[Any]) -> PairSums:
    """One forward pass without gradient over sequences of token ids and their segments, and the sums of what passes the site."""
    device = next(model.parameters()).device
    width = max(len(one) for one in ids)
    token_BT = np.zeros((len(ids), width), dtype=np.int64)
    mask_BT, segment_BT = np.zeros_like(token_BT), np.zeros_like(token_BT)
    for b, (one, segment) in enumerate(zip(ids, segments, strict=True)):  # padded on the right: positions count from the first token
        token_BT[b, : len(one)], segment_BT[b, : len(one)], mask_BT[b, : len(one)] = one, segment, 1
    inputs = {"input_ids": token_BT, "attention_mask": mask_BT}
    with torch.no_grad(), listening(site) as heard:
        model(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()}, use_cache=False, **_no_head(model))
    if not heard:
        raise TutelageError(f"{type(model).__name__} was run, and nothing passed the {site.name}. Choose another layer or site.")
    x_BTD: Tensor = heard[-1].reshape(len(ids), width, -1)
    return pair_sums(x_BTD, torch.from_numpy(segment_BT).to(x_BTD.device))


def _no_head(model: Any) -> dict[str, int]:
    """The argument by which a model computes the logits of one position only, where it has it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


def model_fingerprint(model: Any) -> str:
    """A hash of configuration and weights, at the speed of reading the weights once.

    Of each parameter: name, shape, type, the exact sum of its bits as integers, and every k-th of its entries, 1024 at most. Any change
    of a single entry changes the sum.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict() if hasattr(model, "config") else {}
    for name in ("_name_or_path", "transformers_version", "use_cache"):
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, weight in model.named_parameters():
        bits = weight.detach().contiguous().view(-1).view(integers[weight.element_size()])
        sample = bits[:: max(len(bits) // 1024, 1)][:1024]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()


class _Cache:
    """A folder of finished chunks that belong to one model, layer rule, tokenizer and set of prompts."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        manifest = folder / MANIFEST
        wanted = {"format": FORMAT, **identity}
        if manifest.exists():
            self._check(_read_manifest(manifest), wanted)
        elif folder.exists() and any(folder.iterdir()):
            raise TutelageError(f"{folder} is not empty and holds no cache of concentrations. Give another folder; nothing was changed.")
        else:
            atomic_write(manifest, json.dumps(wanted, indent=1))

    def _check(self, found: Any, wanted: dict[str, Any]) -> None:
        found = found if isinstance(found, dict) else {}
        lines = [
            f"{name}: the cache has {found.get(name)!r}, this run {value!r}" for name, value in wanted.items() if found.get(name) != value
        ]
        if lines:
            raise TutelageError(
                f"The cache {self.folder} belongs to something else and is not used. {'; '.join(lines)}. Give another folder, or remove "
                "this one if it is no longer needed."
            )

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.npz"

    def load(self, number: int, rows: int) -> Columns | None:
        """A finished chunk; None where there is none, or it was damaged since, and must be read anew."""
        if not self._path(number).exists():
            return None
        try:
            columns = load_state(self._path(number))
        except TutelageError:
            return None
        return columns if columns and all(len(value) == rows for value in columns.values()) else None

    def save(self, number: int, columns: Columns) -> None:
        save_state(self._path(number), columns)


def _read_manifest(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise TutelageError(f"{path} is damaged. Remove its folder and read the concentrations anew, or give another folder.") from None


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("reading angles"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda rows: progress.advance(task, rows)
