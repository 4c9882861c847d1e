"""SkillPacks: a task vector compressed module by module into a fraction of its bytes, loaded, summed, routed and taken off again.

    θ_pack = θ_base + Σ_i decode(C_m(θ_tuned,i − θ_base))        (GraftLLM, arXiv 2505.18502, stages B and C)

Operators C_m (`sparse_delta`, `svd_delta`, `quantized_delta`, `dense_delta`) are registered as edits; `rules` says which tensor gets which,
`budget` chooses their settings for a number of bytes, `build.pack` writes a pack and `pack.SkillPack` reads it. Nothing here needs torch.

The paper first teaches the skill to the base in full: by distillation on a larger model's answers, then by preferences. Both are arms of
training through TRL, which write an ordinary model directory for `edit pack`:

    tutelage train --arm gkd+local:model=BIG --model BASE --tasks T --out distilled      (or tutelage teach BIG, and cached: for `local:`)
    tutelage train --arm tpaw --model distilled --tasks T --out tuned              (pairs from the student's own answers)
    tutelage edit pack BASE tuned -o skill.safetensors

Three things differ from the released code, which stores dense bfloat16 weights ("fake" quantisation): a pack holds bit-packed integers, and
its bytes are those of the file; what is decoded is the same in every bit on every machine, so that a pack comes off without a trace; and
every tensor of the model is accounted for, embeddings and norms included.
"""

from __future__ import annotations

from tutelage.edits.packs import dense_delta, quantized_delta, sparse_delta, svd_delta

__all__ = ["dense_delta", "quantized_delta", "sparse_delta", "svd_delta"]
