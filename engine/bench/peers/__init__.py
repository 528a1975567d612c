"""Programs that put one engine through a plan. None imports this package: they run in other interpreters.

Each module has `run(plan)`. Of the plan it reads `model` (a folder), `dtype`, `threads`, `context` (tokens of the
longest request), `before` and `requests` (objects with `tokens` and `max_tokens`), and its own `options`. It
answers with `version`, `load_seconds`, `cpu_seconds` and `requests`, objects with the `tokens` generated and the
`times` they came at, and perhaps `kv_waste`: see `metrics.Run`.
"""
