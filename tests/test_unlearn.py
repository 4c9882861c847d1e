"""Unlearning: forgets, keeps what is locked to the bit, starts with a retain loss of zero, and resumes exactly."""

from __future__ import annotations

import pytest

from tutelage.errors import TutelageError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm


def example(*ids, start=2):
    from tutelage.model_edits.calibration import Example

    return Example(ids, start, "", "")


FORGET = [example(3, k, k + 5, k + 6) for k in range(4, 10)]
RETAIN = [example(20, k, k + 2, k + 1, 2) for k in range(4, 12)]


@pytest.fixture(scope="module")
def taught():
    """A model that knows both sets."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tutelage.model_edits.calibration import batches

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
    model = LlamaForCausalLM(LlamaConfig(**size))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = next(batches([*FORGET, *RETAIN], size=16))
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def model(taught):
    import copy

    return copy.deepcopy(taught)


def start(model, **settings):
    from tutelage.model_edits.calibration import batches
    from tutelage.model_edits.cku import Cku
    from tutelage.model_edits.unlearn import Unlearning

    part = Cku(depth=(0.0, 1.0), **{key: settings.pop(key) for key in ("rate", "score") if key in settings})
    constraints = part.constraints(model, lambda: batches(RETAIN))
    return Unlearning(model, FORGET, RETAIN, **{"lr": 1e-2, "batch_size": 4, **constraints, **settings})


@pytest.mark.parametrize("forget_loss", ["ascent", "npo", "simnpo", "wga", "satimp", "erase"])
def test_every_forget_loss_forgets_and_what_is_locked_stays(model, forget_loss):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    job = start(model, rate=0.5, forget_loss=forget_loss)
    nll = job.forget_nll()
    job.run(8)
    assert job.forget_nll() > nll + 0.05
    for name, parameter in model.named_parameters():
        if ".mlp." not in name:
            assert torch.equal(parameter, before[name])
    rows = (model.model.layers[0].mlp.up_proj.weight == before["model.layers.0.mlp.up_proj.weight"]).all(1)
    assert rows.sum() == 12


def test_the_kl_to_the_model_as_it_was_is_zero_before_the_first_step_and_holds_on(model):
    import copy

    free = start(copy.deepcopy(model), rate=0.0, retain_loss="none")
    held = start(model, rate=0.0, alpha=20.0)
    first = held.step()
    assert first["retain_loss"] == pytest.approx(0, abs=1e-6)
    free.run(15)
    held.run(15)
    drift = [kl(job) for job in (free, held)]
    assert drift[1] < drift[0] / 2


def kl(job):
    from tutelage.model_edits.calibration import batches
    from tutelage.model_edits.unlearn import columns

    batch = next(batches(RETAIN, size=8))
    with torch.no_grad():
        now = columns(job.model, batch)
        with job.as_it_was():
            then = columns(job.model, batch)
    return ((then["logp_BTV"].exp() * (then["logp_BTV"] - now["logp_BTV"])).sum(-1) * now["mask_BT"]).sum().item()


def test_everything_locked_changes_nothing_and_nothing_locked_is_plain_unlearning(model):
    import copy

    from tutelage.model_edits.unlearn import Unlearning

    other = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start(model, rate=1.0).run(3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    start(model, rate=0.0).run(3)
    plain = [name for name, _ in other.named_parameters() if ".mlp." in name]
    Unlearning(other, FORGET, RETAIN, trainable=plain, lr=1e-2, batch_size=4).run(3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_bound_stops_the_ascent(model):
    job = start(model, rate=0.0)
    bound = job.forget_nll() + 1.0
    assert job.run(500, stop_nll=bound, check_every=2)
    assert len(job.history) < 500
    assert job.forget_nll() >= bound


def test_a_resumed_run_is_the_unbroken_one(model, tmp_path):
    import copy

    whole, half, rest = (start(copy.deepcopy(model), rate=0.5, forget_loss="npo") for _ in range(3))
    whole.run(7)
    half.run(3)
    half.save(tmp_path / "state.safetensors")
    rest.load(tmp_path / "state.safetensors")
    rest.run(7)
    assert rest.history == whole.history
    assert all(torch.equal(p, q) for p, q in zip(rest.model.parameters(), whole.model.parameters(), strict=True))
    with pytest.raises(TutelageError, match="another seed"):
        start(copy.deepcopy(model), seed=1).load(tmp_path / "state.safetensors")


def test_mistakes_name_the_fix(model):
    from tutelage.model_edits.unlearn import Unlearning

    with pytest.raises(TutelageError, match="nothing to forget"):
        Unlearning(model, [], RETAIN)
    with pytest.raises(TutelageError, match="Did you mean 'nll'"):
        Unlearning(model, FORGET, RETAIN, retain_loss="nl")
    with pytest.raises(TutelageError, match="Did you mean 'npo'"):
        Unlearning(model, FORGET, RETAIN, forget_loss="npoo")
    with pytest.raises(TutelageError, match="parameter"):
        Unlearning(model, FORGET, RETAIN, trainable=["mlp"])
