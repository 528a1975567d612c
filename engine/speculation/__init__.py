"""Speculation: guess several tokens, compute them in one pass, keep those that were right.

`proposer.py` is the interface; `ngram.py`, `draft_model.py` and `tree.py` guess; `layout.py` puts drafts into a
step's tensors and accepted ones where they belong; `verify.py` decides.
"""
