"""A causal language model of some 60,000 parameters: the student of miniatures whose answers are written token by token.

    student = TinyCausal(vocabulary=14, context=40, seed=0)
    answer_NGT, mask_NGT = student.sample(prompt_NP, 8, generator, tokens=10, end=1)
    logp_NGT = student.logp(prompt_NP, answer_NGT)

Token 0 is padding (`PAD`): prompts are padded on the left, answers on the right. The student never writes it. A prompt is read once for all
of its attempts, in sampling and in training; positions count real tokens, so padding changes nothing.

Array suffixes: `N` prompts, `P` prompt tokens, `G` attempts, `T` answer tokens, `B` sequences, `S` earlier tokens, `V` vocabulary,
`D` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.students._transformer import Block, KeyValue

PAD = 0


class Past(NamedTuple):
    """What was read so far: which of its tokens are real, (B, S), and each layer's keys and values."""

    real_BS: Tensor
    layers: list[KeyValue]

    def repeat(self, times: int) -> Past:
        """Each sequence `times` times in a row."""
        layers = [(key.repeat_interleave(times, 0), value.repeat_interleave(times, 0)) for key, value in self.layers]
        return Past(self.real_BS.repeat_interleave(times, 0), layers)


class TinyCausal(nn.Module):
    """A pre-norm causal transformer with learned positions.

    vocabulary: V, padding included. context: the most tokens of a prompt and its answer. width, layers, heads: of the transformer
    (48, 2, 4: about 60,000 parameters). Weights are torch's defaults drawn under `seed`, positions from N(0, 0.1).
    """

    def __init__(self, *, vocabulary: int, context: int, seed: int, width: int = 48, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.context = context
        with torch.random.fork_rng(devices=[]):  # torch's initialisers know only the global generator
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocabulary, width)
            self.position_SD = nn.Parameter(0.1 * torch.randn(context, width))
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary - 1)

    def forward(self, token_BT: Tensor) -> Tensor:
        """Log-probabilities of the token after each position (B, T, V); that of `PAD` is -inf."""
        return self.read(token_BT)[0]

    def read(self, token_BT: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Log-probabilities (B, T, V) after each of T tokens that follow `past`, and the past including them."""
        steps = token_BT.shape[1]
        real_BS = token_BT != PAD if past is None else torch.cat([past.real_BS, token_BT != PAD], dim=1)
        seen = real_BS.shape[1] - steps
        place_BT = (real_BS.cumsum(dim=1)[:, seen:] - 1).clamp(min=0)
        if int(place_BT.max()) >= self.context:
            raise TutelageError(
                f"A prompt and its answer have {int(place_BT.max()) + 1} tokens, and this student reads {self.context}; give it a larger "
                "context, or shorter tasks."
            )
        column_S = torch.arange(seen + steps, device=token_BT.device)
        row_T1 = column_S[seen:, None]
        mask_BTS = (real_BS.unsqueeze(1) & (column_S <= row_T1)) | (column_S == row_T1)  # padding sees itself: softmax needs something
        x_BTD = self.embed(token_BT) + self.position_SD[place_BT]
        layers = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x_BTD, pair = block.extend(x_BTD, mask_BTS.unsqueeze(1), None if past is None else past.layers[i])
            layers.append(pair)
        logp_BTV = F.log_softmax(self.head(self.norm(x_BTD)), dim=-1)
        return F.pad(logp_BTV, (1, 0), value=-torch.inf), Past(real_BS, layers)

    @torch.no_grad()
    def sample(
        self,
        prompt_NP: Tensor,
        attempts: int,
        generator: torch.Generator,
        *,
        tokens: int,
        end: int | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """`attempts` answers to each prompt, and which of their tokens count: two tensors (N, G, `tokens`).

        An answer stops after the token `end`, which counts. temperature 0 takes the likeliest token and draws nothing.
        """
        logp_NPV, past = self.read(prompt_NP)
        logp_BV, past = logp_NPV[:, -1].repeat_interleave(attempts, 0), past.repeat(attempts)
        answer_BT = torch.full((len(logp_BV), tokens), PAD)
        open_B = torch.ones(len(logp_BV), dtype=torch.bool)
        for t in range(tokens):
            answer_BT[open_B, t] = _draw(logp_BV, temperature, generator)[open_B]
            open_B &= answer_BT[:, t] != (PAD if end is None else end)
            if not open_B.any() or t == tokens - 1:
                break
            logp_BTV, past = self.read(answer_BT[:, t : t + 1], past)
            logp_BV = logp_BTV[:, 0]
        answer_NGT = answer_BT.view(len(prompt_NP), attempts, tokens)
        return answer_NGT, answer_NGT != PAD

    def logp(self, prompt_NP: Tensor, answer_NGT: Tensor) -> Tensor:
        """Log-probability of each token of the answers, in nats, with gradient (N, G, T); 0 at padding."""
        size, attempts, tokens = answer_NGT.shape
        answer_BT = answer_NGT.flatten(0, 1)
        logp_NPV, past = self.read(prompt_NP)
        logp_BTV = logp_NPV[:, -1:].repeat_interleave(attempts, 0)
        if tokens > 1:
            logp_BTV = torch.cat([logp_BTV, self.read(answer_BT[:, :-1], past.repeat(attempts))[0]], dim=1)
        logp_BT = logp_BTV.gather(2, answer_BT.unsqueeze(2)).squeeze(2)
        return torch.where(answer_BT != PAD, logp_BT, 0.0).view(size, attempts, -1)

    def nll(self, prompt_NP: Tensor, answer_NT: Tensor) -> Tensor:
        """Mean negative log-likelihood of the answers' tokens: the supervised loss."""
        return -self.logp(prompt_NP, answer_NT.unsqueeze(1)).sum() / (answer_NT != PAD).sum()


def _draw(logp_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token per sequence (B,)."""
    if temperature == 0:
        return logp_BV.argmax(dim=1)
    return torch.multinomial((logp_BV / temperature).softmax(dim=1), 1, generator=generator).squeeze(1)


def padded(rows: list[list[int]], *, left: bool) -> Tensor:
    """Token lists as one tensor (B, T): prompts are padded on the left, answers on the right."""
    width = max(map(len, rows))
    return torch.tensor([[PAD] * (width - len(row)) + row if left else row + [PAD] * (width - len(row)) for row in rows])


@dataclass(frozen=True)
class Answering:
    """A student on a table of prompts: `tutelage.trainers.torch_loop.train` asks by row numbers.

    prompt_NP: row i is the prompt of row i of the curriculum's pool. tokens, end, temperature: see `TinyCausal.sample`.
    """

    student: TinyCausal
    prompt_NP: Tensor
    tokens: int
    end: int | None = None
    temperature: float = 1.0

    def sample(self, rows_N: NDArray[np.int64], attempts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Answers (N, G, T) and the mask of the tokens that count."""
        return self.student.sample(
            self.prompt_NP[rows_N], attempts, generator, tokens=self.tokens, end=self.end, temperature=self.temperature
        )

    def logp(self, rows_N: NDArray[np.int64], token_NGT: Tensor) -> Tensor:
        """Log-probability of each token (N, G, T), with gradient."""
        return self.student.logp(self.prompt_NP[rows_N], token_NGT)
