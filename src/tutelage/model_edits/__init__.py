"""Edits that need a loaded model: statistics of its activations, pruning and unlearning. Tensor edits, which need none, are in `edits`."""
