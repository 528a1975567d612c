"""Whose kernels may run: publishers' signatures, the keys a user trusts, and the rules that join them.

`dsse`, `statement`, `evidence` and `judge` are pure: bytes and facts in, facts and a verdict out. `keys` adds the
curve, `trusted` and `seen` the files of the trust folder, `gate` the hub. docs/trust.md says what is decided.
"""
