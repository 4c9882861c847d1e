"""Making a pack: survey every tensor, choose the settings, encode one tensor after the other.

Work in progress lies in a hidden folder beside the pack, `.NAME.parts`: what each tensor's survey found, and the bytes of finished tensors.
A pack that was killed goes on from there when the same command is given again; other inputs or settings start afresh. The pack itself takes
its name only when it is whole.

In memory: one tensor's difference in float32, and what its operator needs (for a singular value decomposition, the tensor in float64 and
its smaller Gram matrix).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._dtypes import FLOATS, Array, require_finite_bits
from tutelage.edits._fingerprints import DIGITS, Fingerprint
from tutelage.edits._safetensors import build_header, write_header
from tutelage.edits._spread import Tell
from tutelage.edits.packs.budget import solve
from tutelage.edits.packs.coding import Choice, squared_norm
from tutelage.edits.packs.coding import decode as decode_code
from tutelage.edits.packs.pack import FORMAT, VERSION, content_digest
from tutelage.edits.packs.rules import Rule, Rules, operator_class
from tutelage.edits.packs.second_moments import SecondMoments
from tutelage.edits.plan import Plan, peak_memory
from tutelage.edits.store import WeightStore, compare_shapes
from tutelage.edits.task_vector import subtract
from tutelage.errors import TutelageError
from tutelage.files import atomic_open, atomic_write
from tutelage.registry import edits

_COPY = 1 << 22  # bytes copied at a time
_LEFT_OUT = "the budget buys more elsewhere"


@dataclass(frozen=True)
class Finding:
    """What the survey found of one tensor: its base's fingerprint, ‖Δ‖², and the choices that its rule leaves."""

    name: str
    base: str
    energy: float
    choices: list[Choice]


def plan_pack(base: WeightStore, tuned: WeightStore, rules: Rules, calibration: SecondMoments | None = None) -> tuple[Plan, dict[str, str]]:
    """What `pack` will do at most, from the headers alone, and the operators of each tensor. Tensors that turn out equal are left out."""
    job = _Job(base, tuned, rules, calibration)
    operators = {name: " or ".join(rule.operators) for name, rule in job.rules_of.items() if rule.operators}
    infos = [base.tensors[name] for name in operators]
    if rules.budget is not None:
        most = int(rules.budget * sum(info.nbytes for info in infos))
    else:
        most = sum(_build(job.rules_of[i.name]).most_bytes(i.shape) for i in infos) + job.header_bound(list(operators))
    read = 2 * sum(store.tensors[name].nbytes for store in (base, tuned) for name in base.names)
    skipped = {name: "a rule says skip" for name in job.rules_of if name not in operators}
    skipped |= {name: "not a floating-point tensor; must be equal in both" for name in base.names if name not in job.rules_of}
    skipped |= {name: f"{source} is packed for both" for name, source in base.tied.items()}
    return Plan(list(operators), len(skipped), read, most, peak_memory(infos, 4, whole=True), skipped), operators


def pack(
    base: WeightStore,
    tuned: WeightStore,
    out: Path,
    *,
    rules: Rules,
    calibration: SecondMoments | None = None,
    count_manifest: bool = True,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write the pack of `tuned − base` to the file `out`, and return what is in it.

    Args:
        rules: which tensor gets which operator, and the share of the difference's bytes that the whole file may take (`read_rules`). The
            difference's bytes are those of the tensors that changed, in the base's number format.
        calibration: statistics of the layers' inputs, for GPTQ; without, weights are rounded to nearest.
        count_manifest: False gives the whole budget to the tensors' bytes, for models so small that names and fingerprints outweigh them.
        tell: called with the number of bytes read; both checkpoints are read twice.

    Returns {"tensors": [{name, operator, bytes, error}], "left_out": {name: why}, "delta_bytes", "data_bytes", "file_bytes", "share",
    "error"}; errors are ‖Δ − Δ̂‖ / ‖Δ‖.
    """
    if out.suffix != ".safetensors":
        raise TutelageError(f"A pack is one .safetensors file, not {out}. Name it {out.name}.safetensors.")
    if out.exists():
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")
    job = _Job(base, tuned, rules, calibration, tell, count_manifest=count_manifest)
    work = _Work(out, job.identity())
    try:
        findings = [work.survey[name] if name in work.survey else work.add_finding(job.survey(name)) for name in base.names]
        chosen = job.choose(findings)
    except TutelageError:  # these inputs will not do
        shutil.rmtree(work.folder)
        raise
    for finding in findings:
        choice = chosen.get(finding.name)
        if choice is not None and choice.operator is not None and finding.name not in work.done:
            work.add_tensor(finding.name, *job.encode(finding, choice))
    record = _assemble(out, job, work, findings)
    shutil.rmtree(work.folder)
    return record | {"left_out": job.left_out(findings, chosen)}


def _build(rule: Rule) -> Any:
    return edits.build(rule.operators[0], **rule.settings)


class _Job:
    """The inputs of a pack, checked."""

    def __init__(
        self,
        base: WeightStore,
        tuned: WeightStore,
        rules: Rules,
        calibration: SecondMoments | None,
        tell: Tell | None = None,
        *,
        count_manifest: bool = True,
    ) -> None:
        compare_shapes(base, tuned)
        self.base, self.tuned, self.rules, self.calibration = base, tuned, rules, calibration
        self.tell, self.count_manifest = tell or (lambda count: None), count_manifest
        self.rules_of = rules.assign([info for name in base.names if (info := base.tensors[name]).dtype in FLOATS])
        if calibration is not None:
            calibration.check(base)

    def identity(self) -> dict[str, Any]:
        """What must be the same for an interrupted pack to go on."""
        files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for store in self._stores() for path in store.headers]
        return {"version": VERSION, "files": files, "manifest": self.count_manifest, **self.recipe()}

    def recipe(self) -> dict[str, Any]:
        calibration = self.calibration.content() if self.calibration else None
        return {"source": self.rules.source, "budget": self.rules.budget, "rules": self.rules.as_list(), "calibration": calibration}

    def _stores(self) -> list[WeightStore]:
        return [self.base, self.tuned, *([self.calibration.store] if self.calibration else [])]

    def difference(self, name: str) -> tuple[str, Array | None]:
        """The fingerprint of the base's tensor, and Δ in float32; None where the two are equal."""
        info, digest, changed = self.base.tensors[name], Fingerprint(self.base.tensors[name]), False
        delta = np.zeros(info.numel, np.float32)
        at = 0
        for stored, pair in zip(self.base.chunks(name), self.tuned.chunks(name), strict=True):
            digest.update(stored)
            if info.dtype != self.tuned.tensors[name].dtype or not np.array_equal(stored.view(np.uint8), pair.view(np.uint8)):
                delta[at : at + len(stored)] = subtract(self.base, self.tuned, name, stored, pair)[0]
                changed = True
            elif info.dtype in FLOATS:
                require_finite_bits(stored, info.dtype, name, info.file)
            at += len(stored)
            self.tell(stored.nbytes + pair.nbytes)
        return digest.hexdigest(), delta.reshape(info.shape) if changed and delta.any() else None

    def survey(self, name: str) -> Finding:
        print_of_base, delta = self.difference(name)
        if delta is None:
            return Finding(name, print_of_base, 0.0, [])
        energy, rule = squared_norm(delta), self.rules_of[name]
        choices = [Choice(0, energy)]
        if self.rules.budget is not None:
            for operator in rule.operators:
                choices += operator_class(operator).curve(delta, _rng(name), **rule.settings)
        elif rule.operators:
            choices = [Choice(0, 0.0, rule.operators[0], rule.settings)]
        return Finding(name, print_of_base, energy, choices)

    def choose(self, findings: list[Finding]) -> dict[str, Choice]:
        changed = [f for f in findings if f.choices]
        if not changed:
            raise TutelageError(f"{self.base.path} and {self.tuned.path} do not differ: there is nothing to pack.")
        if self.rules.budget is None:
            return {f.name: f.choices[0] for f in changed}
        delta_bytes = sum(self.base.tensors[f.name].nbytes for f in changed)
        header = self.header_bound([f.name for f in changed]) if self.count_manifest else 0
        left = int(self.rules.budget * delta_bytes) - header
        if left <= 0:
            raise TutelageError(
                f"A budget of {self.rules.budget} of {delta_bytes} bytes is less than the pack's manifest takes (up to {header} bytes, for "
                f"{len(changed)} tensors). Give at least --budget {min(1.0, 1.5 * header / delta_bytes):.3g}."
            )
        return solve({f.name: f.choices for f in changed}, left)

    def encode(self, finding: Finding, choice: Choice) -> tuple[dict[str, Any], Array]:
        """The manifest entry of a tensor, and its bytes."""
        delta = self.difference(finding.name)[1]
        if delta is None:
            raise TutelageError(f"The tensor {finding.name} changed on disk while it was being packed. Start again.")
        operator = edits.build(str(choice.operator), **choice.settings)
        gram_NN = self.calibration.gram(finding.name) if self.calibration else None
        code = operator.encode(delta, gram_NN=gram_NN, rng=_rng(finding.name))
        if choice.nbytes and code.data.size != choice.nbytes:
            raise RuntimeError(f"{finding.name}: {code.data.size} bytes were made, not {choice.nbytes}")
        error = squared_norm(delta - decode_code(code))
        entry = {
            "operator": code.operator,
            "shape": list(code.shape),
            "meta": code.meta,
            "error": round(_relative(error, finding.energy), 9),
        }
        return entry, code.data

    def header_bound(self, names: list[str]) -> int:
        """The most bytes that the file's header can take."""
        groups = max([5, *(str(rule.settings.get("bits", "")).count(",") + 1 for rule in self.rules.rules)])
        meta = {"groups": [[32, 10**6]] * groups, "group": 10**6, "unit": -100, "units": [-100] * 2 * groups}
        manifest = {
            name: {"operator": "quantized_delta", "shape": list(self.base.tensors[name].shape), "meta": meta, "error": 0.123456789e-10}
            for name in names
        }
        base = dict.fromkeys(self.base.names, "0" * DIGITS)
        sizes = {"delta": 10**15, "data": 10**15}
        return len(build_header(((n, "U8", (10**15,), 10**15) for n in names), _metadata(self, base, manifest, sizes, "0" * 64))) + 8

    def left_out(self, findings: list[Finding], chosen: dict[str, Choice]) -> dict[str, str]:
        why = {f.name: "equal in both" for f in findings if not f.choices}
        for name, choice in chosen.items():
            if choice.operator is None:
                why[name] = _LEFT_OUT if self.rules_of[name].operators else "a rule says skip"
        return why


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))


def _relative(error: float, energy: float) -> float:
    return float(np.sqrt(error / energy)) if energy else 0.0


def _metadata(job: _Job, base: dict[str, str], manifest: dict[str, Any], sizes: dict[str, int], content: str) -> dict[str, str]:
    fields = {"base": base, "tensors": manifest, "recipe": job.recipe(), "sizes": sizes}
    texts = {key: json.dumps(value, separators=(",", ":")) for key, value in fields.items()}
    return {"format": FORMAT, "version": str(VERSION), **texts, "content": content}


class _Work:
    """The folder of a pack in progress."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder = out.parent / f".{out.name}.parts"
        self.data = self.folder / "data"
        self.survey: dict[str, Finding] = {}
        self.done: dict[str, dict[str, Any]] = {}
        if not self._continues(identity):
            shutil.rmtree(self.folder, ignore_errors=True)
            atomic_write(self.folder / "identity.json", json.dumps(identity))

    def _continues(self, identity: dict[str, Any]) -> bool:
        """Take up what an interrupted run of the same job left, up to a line that was cut short."""
        try:
            if json.loads((self.folder / "identity.json").read_text(encoding="utf-8")) != json.loads(json.dumps(identity)):
                return False
        except (OSError, ValueError):
            return False
        for line in _lines(self.folder / "survey.jsonl"):
            choices = [Choice(**choice) for choice in line.pop("choices")]
            self.survey[line["name"]] = Finding(**line, choices=choices)
        size = self.data.stat().st_size if self.data.exists() else 0
        for line in _lines(self.folder / "tensors.jsonl"):
            if line["end"] > size:
                break
            self.done[line["name"]] = line
        if self.data.exists():
            with open(self.data, "r+b") as file:
                file.truncate(max((line["end"] for line in self.done.values()), default=0))
        _rewrite(self.folder / "survey.jsonl", [asdict(finding) for finding in self.survey.values()])
        _rewrite(self.folder / "tensors.jsonl", list(self.done.values()))
        return True

    def add_finding(self, finding: Finding) -> Finding:
        self._append("survey.jsonl", json.dumps(asdict(finding)).encode() + b"\n")
        return replace(finding, choices=[replace(c, settings=json.loads(json.dumps(c.settings))) for c in finding.choices])

    def add_tensor(self, name: str, entry: dict[str, Any], data: Array) -> None:
        self._append("data", data.tobytes())
        self.done[name] = {"name": name, "entry": entry, "bytes": data.size, "end": self.data.stat().st_size}
        self._append("tensors.jsonl", json.dumps(self.done[name]).encode() + b"\n")

    def _append(self, name: str, data: bytes) -> None:
        try:
            with open(self.folder / name, "ab") as file:
                file.write(data)
        except OSError as error:
            raise TutelageError(
                f"Cannot write {self.folder / name}: {error.strerror}. The pack does not bear its name yet: mend it, and the "
                "same command goes on with the tensors that are finished."
            ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _assemble(out: Path, job: _Job, work: _Work, findings: list[Finding]) -> dict[str, Any]:
    """Header and bytes to their final name."""
    entries = [(name, "U8", (line["bytes"],), line["bytes"]) for name, line in work.done.items()]
    manifest = {name: line["entry"] for name, line in work.done.items()}
    base = {finding.name: finding.base for finding in findings}
    changed = [f for f in findings if f.choices]
    sizes = {"delta": sum(job.base.tensors[f.name].nbytes for f in changed), "data": sum(line["bytes"] for line in work.done.values())}
    if sum(len(part) for part in _parts(work.data)) != sizes["data"]:
        raise TutelageError(f"{work.data} is not what was written to it: is the same pack being made twice at once? Remove {work.folder}.")
    digest = content_digest(manifest, base)
    for part in _parts(work.data):
        digest.update(part)
    with atomic_open(out) as file:
        write_header(file, build_header(entries, _metadata(job, base, manifest, sizes, digest.hexdigest())))
        for part in _parts(work.data):
            file.write(part)
    energy = sum(f.energy for f in changed)
    kept = {name: line["entry"]["error"] ** 2 for name, line in work.done.items()}
    error = sum(f.energy * kept.get(f.name, 1.0) for f in changed)
    tensors = [{"name": n, "operator": m["operator"], "bytes": work.done[n]["bytes"], "error": m["error"]} for n, m in manifest.items()]
    size = out.stat().st_size
    return {
        "tensors": tensors, "delta_bytes": sizes["delta"], "data_bytes": sizes["data"], "file_bytes": size,
        "share": size / sizes["delta"], "error": _relative(error, energy),
    }  # fmt: skip


def _parts(path: Path) -> Any:
    if path.exists():
        with open(path, "rb") as file:
            while part := file.read(_COPY):
                yield part
