"""The tiny causal student: reading in parts, padding, sampling from what it says, learning."""
# ruff: noqa: E402

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.lm
torch = pytest.importorskip("torch")

import tutelage as tt
from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.students.tiny_causal import PAD, Answering, TinyCausal, padded
from tutelage.trainers.torch_loop import train


def student(seed: int = 0, **options: int) -> TinyCausal:
    return TinyCausal(**{"vocabulary": 7, "context": 16, "seed": seed, "width": 16} | options)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 7, shape, generator=torch.Generator().manual_seed(seed))


def test_reading_in_parts_is_reading_at_once() -> None:
    net, token_BT = student(), tokens(3, 9)
    whole = net(token_BT)
    first, past = net.read(token_BT[:, :4])
    second, past = net.read(token_BT[:, 4:5], past)
    third, _ = net.read(token_BT[:, 5:], past)
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole)
    assert (whole[..., PAD] == -torch.inf).all()
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(3, 9))


def test_it_is_causal() -> None:
    net, token_BT = student(), tokens(2, 8)
    other = token_BT.clone()
    other[:, 5] = token_BT[:, 5] % 6 + 1
    torch.testing.assert_close(net(token_BT)[:, :5], net(other)[:, :5])
    assert not torch.allclose(net(token_BT)[:, 5:], net(other)[:, 5:])


def test_padding_changes_nothing() -> None:
    net, prompt, answer = student(), tokens(1, 4), tokens(1, 3, 5, seed=1)
    wide_prompt = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], dim=1)
    wide_answer = torch.cat([answer, torch.zeros(1, 3, 2, dtype=torch.long)], dim=2)
    logp = net.logp(wide_prompt, wide_answer)
    torch.testing.assert_close(logp[..., :5], net.logp(prompt, answer))
    assert (logp[..., 5:] == 0).all()
    logp.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_logp_is_that_of_the_whole_sequence() -> None:
    net, prompt, answer = student(), tokens(2, 4), tokens(2, 3, 5, seed=1)
    whole = torch.cat([prompt.repeat_interleave(3, 0), answer.flatten(0, 1)], dim=1)
    expected = net(whole)[:, 3:-1].gather(2, whole[:, 4:].unsqueeze(2)).view(2, 3, 5)
    torch.testing.assert_close(net.logp(prompt, answer), expected)
    torch.testing.assert_close(net.nll(prompt, answer[:, 0]), -expected[:, 0].mean())
    torch.testing.assert_close(net.logp(prompt, answer[..., :1]), expected[..., :1])


def test_samples_follow_the_probabilities() -> None:
    """Frequencies of all first and second tokens among 20,000 samples, within five standard errors."""
    net, prompt, size = student(), tokens(1, 3), 20_000
    answer, mask = net.sample(prompt, size, torch.Generator().manual_seed(1), tokens=2)
    assert mask.all()
    pair_BT = torch.cartesian_prod(torch.arange(1, 7), torch.arange(1, 7))
    chance = net.logp(prompt, pair_BT.unsqueeze(0)).sum(-1).exp().squeeze(0).detach().numpy()
    np.testing.assert_allclose(chance.sum(), 1, atol=1e-5)
    counts = np.bincount((answer[0, :, 0] * 7 + answer[0, :, 1]).numpy(), minlength=49)[(pair_BT[:, 0] * 7 + pair_BT[:, 1]).numpy()]
    assert (np.abs(counts / size - chance) < 5 * np.sqrt(chance * (1 - chance) / size)).all()


def test_answers_stop_at_the_end() -> None:
    net = student()
    answer, mask = net.sample(tokens(4, 3), 50, torch.Generator().manual_seed(0), tokens=8, end=2)
    assert answer.shape == mask.shape == (4, 50, 8)
    for row, real in zip(answer.flatten(0, 1).tolist(), mask.flatten(0, 1).tolist(), strict=True):
        length = row.index(2) + 1 if 2 in row else 8
        assert real == [t < length for t in range(8)]
        assert all(t == PAD for t in row[length:])
        assert PAD not in row[:length]


def test_seeds_decide_and_the_global_generator_rests() -> None:
    before = torch.get_rng_state()
    first, again, other = student(3), student(3), student(4)
    torch.testing.assert_close(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    drawn = [net.sample(tokens(2, 3), 4, torch.Generator().manual_seed(9), tokens=5)[0] for net in (first, again)]
    assert torch.equal(*drawn)
    greedy = first.sample(tokens(2, 3), 2, torch.Generator(), tokens=5, temperature=0)[0]
    assert torch.equal(greedy[:, 0], greedy[:, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_too_long_is_an_error() -> None:
    with pytest.raises(TutelageError, match="have 17 tokens, and this student reads 16"):
        student()(tokens(1, 17))
    student()(torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens(1, 16)], dim=1))


def test_padded() -> None:
    assert padded([[1, 2], [3]], left=True).tolist() == [[1, 2], [PAD, 3]]
    assert padded([[1, 2], [3]], left=False).tolist() == [[1, 2], [3, PAD]]


def test_it_learns_to_reverse_and_reinforcement_runs() -> None:
    net = TinyCausal(vocabulary=7, context=16, seed=0, width=32)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        prompt = torch.randint(2, 7, (64, 3), generator=generator)
        loss = net.nll(prompt, torch.cat([prompt.flip(1), torch.ones(64, 1, dtype=torch.long)], dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompt_NP = torch.randint(2, 7, (32, 3), generator=generator)
    expected = torch.cat([prompt_NP.flip(1), torch.ones(32, 1, dtype=torch.long)], dim=1)
    answer, _ = net.sample(prompt_NP, 1, generator, tokens=4, end=1, temperature=0)
    assert (answer[:, 0] == expected).all(dim=1).float().mean() > 0.9

    def verify(rows_N: np.ndarray, token_NGT: torch.Tensor) -> np.ndarray:
        return (token_NGT == expected[rows_N].unsqueeze(1)).all(dim=2).double().numpy()

    run = train(
        Answering(net, prompt_NP, tokens=4, end=1), tt.curriculum("uniform", tt.TaskPool(key=np.arange(32))), verify,
        objective("grpo", kl_coef=0.0), optimizer, generator=generator, updates=3, batch=8, attempts=4,
    )  # fmt: skip
    assert run.ledger.rollouts == 96
