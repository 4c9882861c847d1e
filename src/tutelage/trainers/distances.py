"""Distances of a student to its teacher, and to the truth, along any Hugging Face training: the log that `tutelage audit teacher` reads.

    from tutelage.trainers.distances import DistanceLog

    trainer = SFTTrainer(..., callbacks=[DistanceLog("distances.jsonl", teacher=big, golden=bigger, prompts=held_out_ids, every=50)])

Both distances are KL(reference ‖ student) over whole answers, with the exact KL over the vocabulary at every token, on answers that the
reference wrote once, before the training: the same answers at every evaluation, so that curves differ by the student alone.
Source: arXiv 2502.02671, section 3; a stronger model stands for the paper's oracle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra
from tutelage.files import open_lines
from tutelage.teachers.sequences import Answers, answers_of, kl_on

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise missing_extra("transformers", "lm") from error

Stop = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class DistanceLog(TrainerCallback):
    """Appends a row {step, prompt_id, proxy, golden} per held-out prompt every `every` steps, at the start and at the end.

    Args:
        path: JSON Lines; a run that is resumed goes on in the same file.
        teacher: the model that is distilled. golden: a stronger one of the same tokenizer, standing for the truth; without it the audit has
            the law of the proxy alone.
        prompts: token ids of held-out prompts, disjoint from the training's.
        every: optimiser steps between evaluations.
        samples, horizon: answers per prompt, and their tokens at most.
        end_ids: tokens that end an answer.
        seed: of the references' answers.
        stop: asked after every evaluation, with the steps and mean proxy distances so far (S,); true ends the training.
            `tutelage.audits.teacher.left_its_law` is the audit's rule, whose cost the replication `teacher-hacking` measures.

    Only the main process measures and writes; a model sharded over processes cannot be measured by one, and raises.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        teacher: Any,
        prompts: Sequence[Sequence[int]],
        golden: Any = None,
        every: int = 50,
        samples: int = 1,
        horizon: int = 128,
        end_ids: Sequence[int] | None = None,
        seed: int = 0,
        stop: Stop | None = None,
    ) -> None:
        if every < 1 or not prompts:
            raise TutelageError(f"A log of distances needs prompts and at least one step between evaluations; got every={every}.")
        self.path, self.every = Path(path), every
        self.references = {"proxy": teacher} | ({} if golden is None else {"golden": golden})
        self._write = partial(answers_of, prompts=prompts, samples=samples, horizon=horizon, end_ids=end_ids)
        self._seed, self._stop = seed, stop
        self._steps: list[float] = []
        self._proxy: list[float] = []
        self._answers: dict[str, Answers] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise TutelageError(
                "DistanceLog measures a whole model in the main process, and FSDP or DeepSpeed shards it. Leave it out there."
            )
        if self._stop is not None and args.world_size > 1:
            raise TutelageError(
                f"DistanceLog(stop=...) decides in one process, and this training has {args.world_size}. Leave stop out there."
            )
        for name, reference in self.references.items():
            self._answers[name] = self._write(reference, rng=np.random.default_rng([self._seed, len(name)]))
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])
            if self._stop is not None and self._stop(np.array(self._steps), np.array(self._proxy)):
                control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every:
            self._measure(state, kwargs["model"])

    def _measure(self, state: TrainerState, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        model = getattr(model, "module", model)  # out of DistributedDataParallel
        value_N = {name: kl_on(reference, model, self._answers[name]) for name, reference in self.references.items()}
        self._steps.append(float(state.global_step))
        self._proxy.append(float(value_N["proxy"].mean()))
        rows = [
            {"step": state.global_step, "prompt_id": str(n), **{name: float(values[n]) for name, values in value_N.items()}}
            for n in range(len(value_N["proxy"]))
        ]
        file, _ = open_lines(self.path)
        with file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
