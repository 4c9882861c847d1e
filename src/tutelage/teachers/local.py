"""A language model on this machine as a teacher: it scores any text, and writes answers of its own.

    big = teacher("local", model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16")
    trainer = with_curriculum(trl.GRPOTrainer)(..., teacher=big, objective=objective("gkd"))       # on-policy distillation
    trainer = with_curriculum(trl.SFTTrainer)(..., teacher=big, objective=objective("gkd"))        # on the data's completions
    told = big.demonstrate(dataset, np.random.default_rng(0), verifier=judge).to_dataset()         # sequence-level: plain SFT on it

Its embeddings may be padded to another size than the student's: the softmax of both runs over the tokenizer's entries alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError
from tutelage.models import load_model
from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.registry import teachers
from tutelage.students import builtin_path
from tutelage.students.generation import generate_ids
from tutelage.tasks.verifiers import judge_all
from tutelage.teachers.contract import Demonstrations, Facts
from tutelage.teachers.replies import end_ids
from tutelage.teachers.signal import chat_template_hash, tokenizer_hash, vocabulary_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tutelage.teachers.signal import Signal


@teachers.register("local")
class LocalTeacher:
    """A causal language model on this machine: scores any text, dense or top k, and writes demonstrations.

    Args:
        model: "builtin", a directory, a name on the hub, or a loaded model. It is used in evaluation mode and without gradient, and is left
            as it was found.
        tokenizer: of a loaded model; a model given by name brings its own.
        dtype: as transformers names it; without it float32 on a CPU, the checkpoint's own type elsewhere.
        device: where it computes; without it, wherever the tokens are that it is asked about.
        top_k: entries per position, None for all (dense). A dense signal takes 4 bytes per entry of the vocabulary and token.
        temperature: of the softmax that the log-probabilities are taken from. 1 leaves temperatures to the objective.
        missing_mass: of a top-k signal, what is assumed of all other entries (`tutelage.objectives.divergence.top_k_events`).
        tokens_at_once: how many tokens go through the model at once.

    Raises:
        TutelageError: a directory that is no model, a loaded model without tokenizer, an output layer narrower than the tokenizer.
    """

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any = None,
        dtype: str | None = None,
        device: str | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        missing_mass: str = "tail",
        tokens_at_once: int = 8192,
    ) -> None:
        if isinstance(model, (str, Path)):
            self.name = str(model)
            model, own = load_model(str(builtin_path()) if self.name == "builtin" else self.name, **({"dtype": dtype} if dtype else {}))
            tokenizer = tokenizer or own
        else:
            self.name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        if tokenizer is None:
            raise TutelageError(
                "A loaded model as a teacher needs tokenizer=: without it nothing says whether its ids mean what the student's mean."
            )
        self.model, self.tokenizer, self.tokens_at_once = model.to(device) if device else model, tokenizer, tokens_at_once
        self.device = device
        vocabulary = vocabulary_of(tokenizer)
        wide = model.config.get_text_config().vocab_size
        if wide < vocabulary:
            raise TutelageError(
                f"The tokenizer of the teacher {self.name} gives ids up to {vocabulary - 1}, and its softmax has {wide} entries. Likely "
                "cause: another model's tokenizer, or tokens added without resize_token_embeddings."
            )
        if top_k is not None and not 0 < top_k <= vocabulary:
            raise TutelageError(f"top_k={top_k} must lie between 1 and {vocabulary}, the vocabulary; None gives all entries.")
        self.facts = Facts(
            tokenizer=tokenizer_hash(tokenizer),
            chat_template=chat_template_hash(tokenizer),
            vocabulary=vocabulary,
            top_k=top_k,
            temperature=temperature,
            missing_mass=None if top_k is None else missing_mass,
        )

    def __repr__(self) -> str:
        return f"LocalTeacher({self.name!r}, top_k={self.facts.top_k}, temperature={self.facts.temperature})"

    @cached_property
    def fingerprint(self) -> str:
        """128 bits of the weights, in hexadecimal: of some thousand values of every tensor, evenly spaced, which any training changes."""
        digest = hashlib.blake2b(digest_size=16)
        for name, weight in self.model.named_parameters():
            values = weight.detach().flatten()[:: max(1, weight.numel() // 4096)].float().cpu().numpy()
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def score(self, ids_BL: Tensor, *, attention_BL: Tensor | None = None, places_BT: Tensor | None = None) -> Signal:
        """The distributions of the token after each place, see `tutelage.teachers.contract.Scorer`.

        Memory beside the signal itself: the activations of `tokens_at_once` tokens (or of one row, if longer) and a few blocks of 256 MB.
        """
        import torch

        from tutelage.models import evaluating
        from tutelage.teachers._forward import next_token_logp

        here = self._at(ids_BL)
        attention_BL = torch.ones_like(ids_BL) if attention_BL is None else attention_BL
        if places_BT is None:
            places_BT = torch.where(attention_BL.bool(), torch.arange(ids_BL.shape[1], device=ids_BL.device), -1)
        facts = self.facts
        with evaluating(self.model), torch.autocast(here.type, enabled=False):
            top_ids, logp = next_token_logp(
                self.model, ids_BL.to(here), attention_BL.to(here), places_BT.to(here), vocabulary=facts.vocabulary,
                temperature=facts.temperature, top_k=facts.top_k, tokens=self.tokens_at_once,
            )  # fmt: skip
        return facts.signal(logp.to(ids_BL.device), None if top_ids is None else top_ids.to(ids_BL.device))

    def demonstrate(
        self,
        tasks: Any,
        rng: np.random.Generator,
        *,
        attempts: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        verifier: Callable[[str, Mapping[str, Any]], Any] | None = None,
        batch_size: int = 32,
    ) -> Demonstrations:
        """The teacher's own answers: training on them is sequence-level distillation (Kim & Rush, arXiv 1606.07947).

        A sample at temperature 1 makes it an unbiased estimate of the forward sequence KL, up to the teacher's entropy; the paper takes the
        mode by beam search, of which `temperature=0` is the greedy form.

        Args:
            tasks: a data set or sequence of rows with `prompt` (text, or chat messages, to which the chat template is applied), such as
                `tutelage.tasks.loaders.to_dataset(pool, tokenizer)`.
            rng: all randomness comes from it; global random states stay as they are.
            attempts: answers per task.
            verifier: keeps only answers it calls correct; it sees the answer and the row.
            batch_size: tasks at once.

        Raises:
            TutelageError: tasks without prompts; no answer left.
        """
        import torch

        from tutelage.models import evaluating
        from tutelage.teachers._forward import seeded

        rows = _rows(tasks)
        chat = not isinstance(rows[0]["prompt"], str)
        texts = [
            self.tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) if chat else r["prompt"]
            for r in rows
        ]
        with evaluating(self.model), torch.no_grad(), seeded(self.model, int(rng.integers(2**62))):
            answers_NG = generate_ids(
                self.model, self.tokenizer, texts, attempts=attempts, max_new_tokens=max_new_tokens, temperature=temperature,
                templated=chat, batch_size=batch_size, top_p=top_p,
            )  # fmt: skip
        ends = set(end_ids(self.model, self.tokenizer))
        ended_NG = [[bool(set(ids.tolist()) & ends) for ids in group] for group in answers_NG]
        text_NG = [self.tokenizer.batch_decode(group, skip_special_tokens=True) for group in answers_NG]
        right_NG = None if verifier is None else judge_all(verifier, text_NG, rows)[0] == Kind.CORRECT
        return _kept(rows, text_NG, ended_NG, right_NG)

    def _at(self, ids_BL: Tensor) -> Any:
        """The device that computes; a model without a device of its own follows the tokens."""
        if self.device is None and self.model.device != ids_BL.device and getattr(self.model, "hf_device_map", None) is None:
            self.model.to(ids_BL.device)
        return self.model.device


def _rows(tasks: Any) -> list[Mapping[str, Any]]:
    if isinstance(tasks, TaskPool):
        raise TutelageError(
            "demonstrate takes prompts as a trainer gets them, and a TaskPool does not say how its own become chat messages or text. Give "
            "tutelage.tasks.loaders.to_dataset(pool, tokenizer)."
        )
    rows = list(tasks)
    if not rows or not all(isinstance(row, Mapping) and "prompt" in row for row in rows):
        raise TutelageError(f"demonstrate needs rows with a column 'prompt'; got {str(rows[0])[:80] if rows else 'no rows'}.")
    return rows


def _kept(
    rows: Sequence[Mapping[str, Any]], text_NG: list[list[str]], ended_NG: list[list[bool]], right_NG: np.ndarray | None
) -> Demonstrations:
    """What is fit to be imitated: answers that ended by themselves and, where there is a verifier, are correct."""
    places = [(n, g) for n, group in enumerate(text_NG) for g in range(len(group))]
    ended = [(n, g) for n, g in places if ended_NG[n][g]]
    kept = [(n, g) for n, g in ended if right_NG is None or right_NG[n, g]]
    if not kept:
        raise TutelageError(
            f"None of the teacher's {len(places)} answers is fit to be imitated: {len(places) - len(ended)} had not ended at the limit, "
            f"{len(ended)} are not correct. Raise max_new_tokens or attempts, or take a stronger teacher."
        )
    return Demonstrations(
        prompts=[rows[n]["prompt"] for n, _ in kept],
        completions=[text_NG[n][g] for n, g in kept],
        keys=[rows[n].get("key", n) for n, _ in kept],
        sampled=len(places),
        cut=len(places) - len(ended),
        wrong=len(ended) - len(kept),
    )
