"""Teachers: what a local one says at every place, what it demonstrates, and its record on disk, which is used for what it is or refused."""
# ruff: noqa: E402

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
from test_trl_distill import SFT, big, grpo, logged, rows, sft, trained
from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.outcomes import Kind
from tutelage.tasks.verifiers import Judgement
from tutelage.teachers import _forward, teacher
from tutelage.teachers._rows import Rows
from tutelage.teachers.recording import record, size_of


def texts(size: int = 5, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, and an attention mask with padding before, behind and in between."""
    rng = np.random.default_rng(1)
    attention = torch.ones(size, width, dtype=torch.long)
    attention[0, :4], attention[1, 6:], attention[2, 3:5] = 0, 0, 0
    return torch.from_numpy(rng.integers(3, 40, (size, width))), attention


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    common = {"vocab_size": 43, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "llama": tiny.model(3),
        "learned positions": GPT2LMHeadModel(GPT2Config(vocab_size=43, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
        "capped logits": Gemma2ForCausalLM(
            Gemma2Config(**common, intermediate_size=32, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5)
        ),
    }


@pytest.mark.parametrize("kind", ["llama", "learned positions", "capped logits"])
@pytest.mark.parametrize("small", [False, True])
def test_scores_are_the_models_own_wherever_the_padding_is(monkeypatch: pytest.MonkeyPatch, kind: str, small: bool) -> None:
    if small:  # rows and positions in many parts
        monkeypatch.setattr(_forward, "LOGITS_AT_ONCE", 43 * 2)
    net = models()[kind]
    said = teacher("local", model=net, tokenizer=tiny.tokenizer(), **({"tokens_at_once": 10} if small else {}))
    ids, attention = texts()
    signal = said.score(ids, attention_BL=attention)
    for b in range(len(ids)):
        kept = attention[b].bool()
        with torch.no_grad():
            truth = net.eval()(input_ids=ids[b, kept][None]).logits[0].log_softmax(-1)
        torch.testing.assert_close(signal.logp_BTV[b, kept], truth, atol=1e-5, rtol=1e-4)
        assert signal.logp_BTV[b, ~kept].isnan().all()
    places = torch.tensor([[8, 4, -1], [0, -1, 2], [8, 2, 0], [-1, -1, -1], [3, 3, 3]])
    asked = said.score(ids, attention_BL=attention, places_BT=places).logp_BTV
    for b, t in (places >= 0).nonzero().tolist():
        torch.testing.assert_close(asked[b, t], signal.logp_BTV[b, places[b, t]], atol=1e-6, rtol=1e-5)
    assert asked[places < 0].isnan().all()
    few = teacher("local", model=net, tokenizer=tiny.tokenizer(), top_k=5, temperature=2.0).score(ids, attention_BL=attention)
    used = attention.bool()
    best = (signal.logp_BTV / 2).log_softmax(-1)[used].topk(5)
    torch.testing.assert_close(few.top_logp_BTK[used], best.values, atol=1e-5, rtol=1e-4)
    assert (few.top_ids_BTK[used] == best.indices).float().mean() > 0.95  # ties aside
    with pytest.raises(TutelageError, match="place lies on padding"):
        said.score(ids, attention_BL=attention, places_BT=torch.zeros(5, 1, dtype=torch.long))


def test_memory_is_bounded_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forward, "LOGITS_AT_ONCE", 43 * 3)
    said, widths, lengths = big(top_k=2, tokens_at_once=20), [], []
    said.model.get_output_embeddings().register_forward_hook(lambda m, a, out: widths.append(out.numel()))
    said.model.model.register_forward_hook(lambda m, a, out: lengths.append(out.last_hidden_state.shape[:2].numel()))
    said.score(*texts()[:1])
    assert max(widths) == 43 * 3
    assert max(lengths) <= 20
    assert len(widths) == 5 * 9 / 3
    assert len(lengths) == 3  # the backbone runs once for each part of the rows


def test_what_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no model")
    with pytest.raises(TutelageError, match=r"is not a model directory: it has no config\.json \(it holds notes\.txt\)"):
        teacher("local", model=str(tmp_path / "folder"))
    with pytest.raises(TutelageError, match="has no tokenizer"):
        teacher("local", model=tiny.saved(tmp_path / "bare"))
    with pytest.raises(TutelageError, match="needs tokenizer="):
        teacher("local", model=tiny.model())
    more = tiny.tokenizer()
    more.add_tokens(["ab", "cd"])
    with pytest.raises(TutelageError, match="gives ids up to 44, and its softmax has 43 entries"):
        teacher("local", model=tiny.model(), tokenizer=more)
    for bad in (0, 44):
        with pytest.raises(TutelageError, match=r"must lie between 1 and 43"):
            big(top_k=bad)
    with pytest.raises(TutelageError, match=r"Unknown teacher 'locl'\. Did you mean 'local'"):
        teacher("locl", model="builtin")


def test_a_fingerprint_is_of_the_weights() -> None:
    assert big().fingerprint == big().fingerprint
    assert big().fingerprint != big(seed=8).fingerprint
    one = big()
    with torch.no_grad():
        one.model.model.norm.weight[3] += 1e-3
    assert one.fingerprint != big().fingerprint


# --- demonstrations


def judge(completion: str, task: Any) -> Judgement:
    return Judgement(Kind.CORRECT if "a" in completion else Kind.WRONG, float("a" in completion))


@pytest.mark.parametrize("chat", [False, True])
def test_demonstrations_are_seeded_verified_and_ready_to_train_on(chat: bool) -> None:
    data, said = tiny.tasks(12, chat=chat)[0], teacher("local", model=tiny.model(2), tokenizer=tiny.tokenizer())
    before = torch.get_rng_state()
    told = said.demonstrate(data, np.random.default_rng(0), attempts=8, max_new_tokens=20)
    assert torch.equal(before, torch.get_rng_state())
    again = said.demonstrate(data, np.random.default_rng(0), attempts=8, max_new_tokens=20)
    other = said.demonstrate(data, np.random.default_rng(1), attempts=8, max_new_tokens=20)
    assert told == again
    assert told.completions != other.completions
    assert told.sampled == 96
    assert 0 < len(told) == 96 - told.cut < 96
    assert set(told.keys) <= set(range(12))
    right = said.demonstrate(data, np.random.default_rng(0), attempts=8, max_new_tokens=20, verifier=judge)
    assert all("a" in text for text in right.completions)
    assert 0 < len(right) == 96 - right.cut - right.wrong < len(told)
    dataset = right.to_dataset()
    assert dataset.column_names == ["prompt", "completion", "key"]
    assert dataset[0]["prompt"] == right.prompts[0]
    assert dataset[0]["completion"] == ([{"role": "assistant", "content": right.completions[0]}] if chat else right.completions[0])


def test_demonstrations_that_cannot_be() -> None:
    said, rng = big(), np.random.default_rng(0)
    with pytest.raises(TutelageError, match=r"None of the teacher's 4 answers .* 4 had not ended at the limit"):
        said.demonstrate([{"prompt": "01="}] * 4, rng, max_new_tokens=1, temperature=0)
    with pytest.raises(TutelageError, match="does not say how its own become chat messages"):
        said.demonstrate(tt.TaskPool(arm=[0]), rng)
    with pytest.raises(TutelageError, match="rows with a column 'prompt'; got no rows"):
        said.demonstrate([], rng)


# --- a record on disk


def conversations() -> Any:
    return rows().map(
        lambda r: {"prompt": [{"role": "user", "content": r["prompt"]}], "completion": [{"role": "assistant", "content": r["completion"]}]}
    )


@pytest.mark.parametrize(("chat", "length"), [(False, 1024), (True, 1024), (False, 6), (True, 9)])
def test_rows_are_cut_into_tokens_as_trl_does(tmp_path: Path, chat: bool, length: int) -> None:
    data = conversations() if chat else rows()
    trainer = trl.SFTTrainer(
        tiny.model(), args=tiny.sft_config(tmp_path, max_length=length), train_dataset=data, processing_class=tiny.tokenizer()
    )
    ours, theirs = (list(Rows(d, tiny.tokenizer(), length)) for d in (data, trainer.train_dataset))
    assert [row.key for row in ours] == [row.key for row in theirs]
    assert len(ours) > 10


@pytest.fixture
def told(tmp_path: Path) -> Path:
    record(big(top_k=6), rows(), tmp_path / "told", tokens_per_shard=20)
    return tmp_path / "told"


def test_a_record_says_what_the_teacher_said(told: Path) -> None:
    said, saved = big(top_k=6), teacher("cached", path=str(told))
    batch = [list(Rows(rows(), tiny.tokenizer(), None))[i] for i in (17, 3, 8)]
    ids, attention, places = (torch.full((3, 11), fill) for fill in (0, 0, -1))
    for b, row in enumerate(batch):  # padded on the left
        ids[b, 11 - len(row.ids) :], attention[b, 11 - len(row.ids) :] = torch.from_numpy(row.ids).long(), 1
        places[b, 5 : 5 + len(row.places)] = torch.from_numpy(row.places).long() + 11 - len(row.ids)
    one, other = (t.score(ids, attention_BL=attention, places_BT=places) for t in (said, saved))
    used = places >= 0
    torch.testing.assert_close(other.top_logp_BTK[used], one.top_logp_BTK[used], atol=4e-3, rtol=2e-3)
    assert torch.equal(other.top_ids_BTK[used], one.top_ids_BTK[used])
    assert other.top_logp_BTK[~used].isnan().all()
    assert saved.facts.recorded
    assert saved.facts.tokenizer == said.facts.tokenizer
    few = teacher("cached", path=str(told), top_k=2).score(ids, attention_BL=attention, places_BT=places)
    assert torch.equal(few.top_ids_BTK[used], one.top_ids_BTK[used][:, :2])


def test_training_on_a_record_is_training_with_the_teacher(tmp_path: Path) -> None:
    record(big(top_k=6), rows(), tmp_path / "told", precision="float32")
    saved = teacher("cached", path=str(tmp_path / "told"))
    finals = []
    for given in (big(top_k=6), saved):
        made = sft(tmp_path, objective("distill_top_k"), given=given, curriculum="uniform", gradient_accumulation_steps=2)
        finals.append(trained(made))
        assert logged(made, "objective/mass")[0] > 0.5
    np.testing.assert_allclose(*finals, atol=2e-4)


def test_a_record_is_compact(tmp_path: Path) -> None:
    manifest = record(big(top_k=16), rows(), tmp_path / "told")
    shard = tmp_path / "told" / manifest["shards"][0]["name"]
    found = sum(file.stat().st_size for file in shard.iterdir())
    assert manifest["data"] == {"rows": 24, "positions": 94, "fingerprint": manifest["data"]["fingerprint"]}
    assert size_of(manifest) == 94 * 16 * 4 + 24 * 24
    assert size_of(manifest) <= found <= size_of(manifest) + 8 + 4 * 128


class Dies:
    """A teacher that is cut off after so many batches."""

    def __init__(self, batches: int) -> None:
        self.whole, self.batches = big(top_k=6, tokens_at_once=30), batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def score(self, *args: Any, **options: Any) -> Any:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return self.whole.score(*args, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_stopped_record_goes_on(tmp_path: Path) -> None:
    record(big(top_k=6, tokens_at_once=30), rows(), tmp_path / "whole", tokens_per_shard=20)
    stops = 0
    while stops < 9:
        try:
            record(Dies(2), rows(), tmp_path / "told", tokens_per_shard=20)
            break
        except KeyboardInterrupt:
            stops += 1
        with pytest.raises(TutelageError, match=rf"is not finished: {5 - stops} of 5 shards are missing"):
            teacher("cached", path=str(tmp_path / "told"))
    assert stops == 4
    done: list[int] = []
    record(Dies(99), rows(), tmp_path / "told", tokens_per_shard=20, tell=done.append)
    assert sum(done) == 94  # what is finished already counts as done
    assert files(tmp_path / "told") == files(tmp_path / "whole")


def test_repeated_rows_are_recorded_once(tmp_path: Path) -> None:
    from datasets import concatenate_datasets

    manifest = record(big(top_k=6), concatenate_datasets([rows(), rows()]), tmp_path / "told")
    assert manifest["data"]["rows"] == 24


def test_another_record_is_never_mixed_in(told: Path) -> None:
    before = files(told)
    for changed, data, options, message in (
        (big(top_k=7), rows(), {}, "top_k was 6 and is 7"),
        (big(seed=8, top_k=6), rows(), {}, r"teacher\.fingerprint was"),
        (big(top_k=6, temperature=2.0), rows(), {}, r"temperature was 1\.0 and is 2\.0"),
        (big(top_k=6), rows(20), {}, r"data\.rows was 24 and is 20"),
        (big(top_k=6), rows(), {"precision": "float32"}, r"storage\.logp was 'float16' and is 'float32'"),
        (big(top_k=6), rows(), {"tokens_per_shard": 30}, "shards of another size"),
    ):
        with pytest.raises(TutelageError, match=message):
            record(changed, data, told, **{"tokens_per_shard": 20, **options})
    assert files(told) == before
    with pytest.raises(TutelageError, match="too much to keep"):
        record(big(), rows(), told)
    with pytest.raises(TutelageError, match="no row with a trained token"):
        record(big(top_k=6), rows(), told.parent / "none", max_length=2)
    with pytest.raises(TutelageError, match="expected prompt and completion, or input_ids"):
        record(big(top_k=6), [{"text": "a"}], told.parent / "none")
    (told.parent / "other").mkdir()
    (told.parent / "other" / "mine.txt").write_text("mine")
    with pytest.raises(TutelageError, match="is no record of a teacher"):
        record(big(top_k=6), rows(), told.parent / "other")


def test_what_is_no_record_or_a_damaged_one(told: Path) -> None:
    def opened(**options: Any) -> Any:
        return teacher("cached", path=str(told), **options)

    with pytest.raises(TutelageError, match="holds the top 6 of every position and 7 were asked for"):
        opened(top_k=7)
    with pytest.raises(TutelageError, match="recorded of another teacher"):
        opened(fingerprint="0" * 32)
    opened(fingerprint=big().fingerprint)
    with pytest.raises(TutelageError, match="it does not exist"):
        teacher("cached", path=str(told / "nowhere"))
    with pytest.raises(TutelageError, match=r"it has no manifest\.json \(ids\.npy, keys\.npy, logp\.npy, start\.npy\)"):
        teacher("cached", path=str(told / "shard-00000"))
    logp = told / "shard-00001" / "logp.npy"
    whole = logp.read_bytes()
    for bad in (whole[:-10], whole[:20], b"", b"hello"):
        logp.write_bytes(bad)
        with pytest.raises(TutelageError, match=r"logp\.npy is damaged.*Remove the folder"):
            opened()
    np.save(logp, np.zeros((3, 6), np.float16))
    with pytest.raises(TutelageError, match=r"holds float16 of shape \(3, 6\); the manifest promises"):
        opened()
    logp.write_bytes(whole)
    manifest = json.loads((told / "manifest.json").read_text())
    for text, message in (
        (json.dumps(manifest | {"version": 9}), "version 9, and this release reads version 1"),
        (json.dumps(manifest | {"format": "x"}), "not the manifest of a teacher's record"),
        ("{", "cannot be read"),
    ):
        (told / "manifest.json").write_text(text)
        with pytest.raises(TutelageError, match=message):
            opened()


def test_a_record_of_other_data_is_refused_before_the_first_step(told: Path, tmp_path: Path) -> None:
    loss, saved = objective("distill_top_k"), teacher("cached", path=str(told))
    sft(tmp_path, loss, given=saved)
    with pytest.raises(TutelageError, match=r"was recorded on other data: \d+ of 24 rows looked at are not in it, the first is row"):
        sft(tmp_path, loss, given=saved, max_length=5)
    with pytest.raises(TutelageError, match="recorded on other data"):
        sft(tmp_path, loss, given=saved, completion_only_loss=False)
    with pytest.raises(TutelageError, match="knows only the texts that were recorded, and GRPO trains on new ones"):
        grpo(tmp_path, loss, given=saved)
    other = tiny.tokenizer()
    other.add_tokens(["ab"])
    wide = tiny.model()
    wide.resize_token_embeddings(44, mean_resizing=False)
    for tokenizer, message in ((other, "tokenizer .* is not the student's"), (templated(), "chat template .* is not the student's")):
        with pytest.raises(TutelageError, match=message):
            SFT(
                wide if tokenizer is other else tiny.model(), args=tiny.sft_config(tmp_path), train_dataset=rows(),
                processing_class=tokenizer, objective=loss, teacher=saved,
            )  # fmt: skip
    ids = torch.full((1, 5), 7)
    with pytest.raises(TutelageError, match=r"A text of 5 tokens, 5 of them trained, is not in"):
        saved.score(ids)


def templated() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


# --- the command


def command(*arguments: object, cwd: Path) -> Any:
    line = [sys.executable, "-m", "tutelage.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_teach_as_typed(tmp_path: Path) -> None:
    lines = [{"prompt": f"{i:02d}=", "answer": "abc"[i % 3] * (1 + i % 5)} for i in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    net = tiny.model(2)
    net.save_pretrained(tmp_path / "big")
    plain = tiny.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "big")
    usual = ("teach", "big", "--tasks", "tasks.jsonl", "--top-k", 4)
    plan = json.loads(command(*usual, "-o", "told", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert not plan["written"]
    assert not (tmp_path / "told").exists()
    done = json.loads(command(*usual, "-o", "told", "--json", cwd=tmp_path).stdout)
    assert done == plan | {"written": True}
    saved = teacher("cached", path=str(tmp_path / "told"))
    assert saved.manifest["data"]["rows"] == plan["rows"] <= 40
    assert f"{plan['rows']} rows" in command(*usual, "-o", "told", cwd=tmp_path).stdout  # finished already
    refused = command("teach", "big", "--tasks", "tasks.jsonl", "--top-k", 5, "-o", "told", cwd=tmp_path)
    assert refused.returncode == 2
    assert "top_k was 4 and is 5" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_teach_demonstrates(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"prompt": f"{i:02d}=", "answer": "a"}) + "\n" for i in range(40)))
    (tmp_path / "any.py").write_text("def anything(completion, task):\n    return len(completion) > 0\n")
    tiny.model(2).save_pretrained(tmp_path / "big")
    tiny.tokenizer().save_pretrained(tmp_path / "big")
    usual = (
        "teach",
        "big",
        "--tasks",
        "tasks.jsonl",
        "--demonstrate",
        "--attempts",
        4,
        "--max-new-tokens",
        30,
        "--verifier",
        "any:anything",
    )
    assert command(*usual, "-o", "own.jsonl", "--dry-run", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "own.jsonl").exists()
    done = json.loads(command(*usual, "-o", "own.jsonl", "--json", cwd=tmp_path).stdout)
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert 0 < done["kept"] == len(lines) <= done["answers"] - done["cut"] - done["wrong"]
    assert set(lines[0]) == {"key", "prompt", "answer"}
    from tutelage.tasks.loaders import load_tasks

    assert len(load_tasks(tmp_path / "own.jsonl").train) > 0
    for arguments, message in ((("-o", "own.jsonl"), "exists already"), (("-o", "own"), "give -o a name such as own.jsonl")):
        refused = command(*usual, *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
