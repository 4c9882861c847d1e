"""Edits: what is changed in the weights after training, streaming over checkpoints of any size with the memory of one tensor.

Merges (`linear`, `task_arithmetic`, `ties`, `dare`) are typed functions on arrays, registered as edits; `store` reads and writes
checkpoints, `task_vector` holds a difference that knows its base, `apply` adds one with an exact undo, `recipe` and `merge` read and run
mergekit-style YAML, `verify` checks a checkpoint, `packs` compresses a task vector to a budget of bytes. `tutelage edit --help` is the
same on the command line. Edits that read text through a loaded model (pruning, unlearning, routing) are in `tutelage.model_edits`.
"""

from __future__ import annotations
