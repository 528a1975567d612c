"""Programs that run one peer's operators in another interpreter. None imports this package.

Each module has `start(threads)`, which answers with the peer's version, `wake()`, which has its threads at work
once, and `make(case)`. Of the case it reads `name`, `dtype`, `numbers` and `tensors`; it answers with two functions,
or None where it has no operator for that case: one that does the work, one that gives its result as the bytes of
float32.
"""
