"""Parity with TRL: its trainers' own `training_step` on a tiny random Llama against the presets, in value and every parameter's gradient.

TRL's side is what its `train()` runs per micro-batch, including its normalisation and the scaling that transformers adds for accumulation;
only the generation of the inputs is replaced by random ones. Ours is the preset with denominators counted once over the step.
"""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

from tutelage.objectives import Sum, objective  # noqa: E402

pytestmark = pytest.mark.lm
B, P, T, G, VOCABULARY = 8, 3, 6, 4, 16
CLOSE = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A directory with a one-layer Llama of random weights, and its word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i + 2 for i in range(VOCABULARY - 2)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return folder, PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def build(student, tmp_path):
    def make(kind, rewards=None, **arguments):
        from datasets import Dataset
        from transformers import LlamaForCausalLM

        folder, tokenizer = student
        trainer_class, config_class = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}[kind]
        settings = {"per_device_train_batch_size": B, "num_generations": G, "max_completion_length": T, "gradient_accumulation_steps": 1}
        config = config_class(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **{**settings, **arguments})
        model = LlamaForCausalLM.from_pretrained(folder)
        return trainer_class(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: rewards or [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["w1 w2"] * B}),
        )

    return make


def random_inputs(trainer, seed=0, spread=0.4, empty=True):
    """Columns as TRL's `_generate_and_score_completions` returns them: ragged answers, one masked whole, stale log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.randint(1, T + 1, (B,), generator=generator)
    if empty:
        length_B[3] = 0
    inputs = {
        "prompt_ids": torch.randint(2, VOCABULARY, (B, P), generator=generator),
        "prompt_mask": torch.ones(B, P, dtype=torch.long),
        "completion_ids": torch.randint(2, VOCABULARY, (B, T), generator=generator),
        "completion_mask": (torch.arange(T) < length_B.unsqueeze(1)).long(),
        "advantages": torch.randn(B, generator=generator),
    }
    logp_BT, _ = score(trainer, inputs)
    inputs["old_per_token_logps"] = logp_BT.detach() + spread * torch.randn(B, T, generator=generator)
    inputs["ref_per_token_logps"] = logp_BT.detach() + spread * torch.randn(B, T, generator=generator)
    inputs["old_logps"] = (inputs["old_per_token_logps"] * inputs["completion_mask"]).sum(1)
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    return inputs


def score(trainer, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logp_BT, entropy_BT, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, T, compute_entropy=True)
    return logp_BT, entropy_BT


def rows(inputs, start, stop):
    return {key: x if x.dim() == 0 else x[start:stop] for key, x in inputs.items()}


def gradients(trainer):
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return found


def run_trl(trainer, inputs, steps):
    """Loss and gradients after `steps` accumulated micro-batches of TRL's own training step."""
    trainer._prepare_inputs = lambda part: part
    trainer.current_gradient_accumulation_steps = steps
    size = B // steps
    losses = [trainer.training_step(trainer.model, rows(inputs, i * size, (i + 1) * size), None) for i in range(steps)]
    return sum(losses), gradients(trainer)


def as_batch(trainer, inputs):
    logp_BT, entropy_BT = score(trainer, inputs)
    return {
        "logp_BT": logp_BT,
        "entropy_BT": entropy_BT,
        "old_logp_BT": inputs["old_per_token_logps"],
        "ref_logp_BT": inputs["ref_per_token_logps"],
        "mask_BT": inputs["completion_mask"],
        "advantage_B": inputs["advantages"],
    }


def run_ours(trainer, inputs, part, steps=1, local_counts=False):
    """The same from the preset, in `steps` micro-batches; `local_counts` counts each one alone and averages, as bnpo does."""
    size = B // steps
    counts = part.denominators_of({"mask_BT": inputs["completion_mask"]}, max_length=T)
    total = torch.zeros(())
    for i in range(steps):
        batch = as_batch(trainer, rows(inputs, i * size, (i + 1) * size))
        own = part.denominators_of(batch, max_length=T) if local_counts else counts
        loss, _ = part(batch, denominators=own)
        loss = loss / steps if local_counts else loss
        loss.backward()
        total = total + loss.detach()
    return total, gradients(trainer)


def assert_same(theirs, ours):
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    assert max(grad.abs().max() for grad in theirs[1].values()) > 1e-3
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


VARIANTS = {
    "dapo": ("trl:dapo", {"loss_type": "dapo"}, {}),
    "dapo clip-higher, KL": ("trl:dapo", {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.2}, {"clip_high": 0.28, "kl_coef": 0.2}),
    "dapo delta": ("trl:dapo", {"loss_type": "dapo", "delta": 1.5}, {"dual_clip": 1.5}),
    "dapo plain k3": (
        "trl:dapo",
        {"loss_type": "dapo", "beta": 0.2, "use_bias_correction_kl": False},
        {"kl_coef": 0.2, "kl_importance": False},
    ),
    "grpo": ("trl:grpo", {"loss_type": "grpo"}, {}),
    "grpo KL, delta": ("trl:grpo", {"loss_type": "grpo", "beta": 0.2, "delta": 1.5}, {"kl_coef": 0.2, "dual_clip": 1.5}),
    "dr_grpo": ("trl:dr_grpo", {"loss_type": "dr_grpo", "beta": 0.2}, {"kl_coef": 0.2}),
    "cispo": ("trl:cispo", {"loss_type": "cispo", "epsilon_high": 5.0}, {}),
    "cispo bound below one": ("trl:cispo", {"loss_type": "cispo", "epsilon_high": 1.1, "beta": 0.2}, {"clip_high": 0.1, "kl_coef": 0.2}),
    "gspo": ("trl:gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}, {}),
    "gspo wide, KL": (
        "trl:gspo",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.2},
        {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.2},
    ),
    "sequence ratio, token mean": (
        "trl:dapo",
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        {"ratio": "seq_mean"},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo_trainer(build, variant):
    name, arguments, switches = VARIANTS[variant]
    part = objective(name, **switches)
    spread = 0.1 if "epsilon" in arguments else 0.4  # leave some sequences inside GSPO's narrow clip
    for steps in (1, 2, 4):
        trainer = build("grpo", **arguments, per_device_train_batch_size=B // steps, gradient_accumulation_steps=steps)
        inputs = random_inputs(trainer, seed=steps, spread=spread)
        theirs = run_trl(trainer, inputs, steps)
        assert_same(theirs, run_ours(trainer, inputs, part, steps=1))
        assert_same(theirs, run_ours(trainer, inputs, part, steps=steps))


def test_bnpo_is_the_token_mean_of_each_micro_batch(build):
    part = objective("trl:bnpo")
    for steps in (1, 2, 4):
        trainer = build("grpo", loss_type="bnpo", per_device_train_batch_size=B // steps, gradient_accumulation_steps=steps)
        inputs = random_inputs(trainer, seed=steps)
        theirs = run_trl(trainer, inputs, steps)
        assert_same(theirs, run_ours(trainer, inputs, part, steps=steps, local_counts=True))
        whole = run_ours(trainer, inputs, part)[0]
        assert torch.isclose(whole, theirs[0], **CLOSE) == (steps == 1), "bnpo depends on the micro-batch, the token mean does not"


def test_dapo_normaliser_of_two_optimiser_steps_per_generation(build):
    """TRL's N is half the tokens of the generation batch then, whatever the tokens of the step: parity needs the same count."""
    part = objective("trl:dapo")
    trainer = build("grpo", loss_type="dapo", per_device_train_batch_size=2, gradient_accumulation_steps=2, steps_per_generation=4)
    generation = random_inputs(trainer)
    first = rows(generation, 0, 4)
    trainer._prepare_inputs = lambda inputs: inputs
    trainer.current_gradient_accumulation_steps = 2
    theirs = sum(trainer.training_step(trainer.model, rows(first, i, i + 2), None) for i in (0, 2)), gradients(trainer)
    batch = as_batch(trainer, first)
    loss, _ = part(batch, denominators={"tokens": generation["num_items_in_batch"] / 2})
    loss.backward()
    assert_same(theirs, (loss.detach(), gradients(trainer)))
    assert generation["num_items_in_batch"] / 2 != part.denominators_of(batch)["tokens"]


def test_rloo_trainer(build):
    part = objective("trl:rloo")
    for steps in (1, 2, 4):
        trainer = build("rloo", per_device_train_batch_size=B // steps, gradient_accumulation_steps=steps)
        # An answer masked whole adds the constant −A to TRL's RLOO loss and nothing to its gradient; ours leaves the constant out.
        inputs = random_inputs(trainer, seed=steps, spread=0.1, empty=False)
        assert_same(run_trl(trainer, inputs, steps), run_ours(trainer, inputs, part, steps=steps))


def test_entropy_bonus_is_a_part_of_a_sum(build):
    part = Sum({"policy": (objective("trl:grpo"), 1.0), "entropy": (objective("entropy"), 0.3)})
    trainer = build("grpo", loss_type="grpo", entropy_coef=0.3)
    inputs = random_inputs(trainer)
    assert_same(run_trl(trainer, inputs, 1), run_ours(trainer, inputs, part))


REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, None, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0, 3.0, 0.0, None, 1.0]


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize(
    ("trainer_kind", "name", "arguments", "switches"),
    [
        ("grpo", "trl:grpo", {}, {}),
        ("grpo", "trl:dr_grpo", {"scale_rewards": "none"}, {}),
        ("grpo", "trl:grpo", {"scale_rewards": "batch"}, {"advantage": "batch_std"}),
        ("rloo", "trl:rloo", {"beta": 0.0}, {"kl_coef": 0.0}),
    ],
)
def test_advantages(build, rewards, trainer_kind, name, arguments, switches):
    trainer = build(trainer_kind, rewards=rewards, **arguments)
    trainer.model.train()
    torch.manual_seed(0)
    theirs = trainer._generate_and_score_completions([{"prompt": "w1 w2"}] * B)["advantages"]
    reward_NG = torch.tensor([math.nan if r is None else r for r in rewards]).view(-1, G)
    ours = objective(name, **switches).advantages(reward_NG)
    assert ours.abs().max() > 0.3
    torch.testing.assert_close(ours, theirs, **CLOSE)
