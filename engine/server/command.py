"""`khub engine serve`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..extra import needed
from ..server_ray.arguments import add_arguments as add_cluster_arguments
from ..server_ray.arguments import cluster_of
from ..speed import add_speed, speed_of
from .options import add_arguments, options_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_EXAMPLES = """
examples:
  khub engine serve engine/models/stdlib-llama
  khub engine serve DIR --kernels hub --host 0.0.0.0 --api-key-file keys.txt
  khub engine serve DIR --port 0 --json            any free port, the address as JSON
  khub engine serve DIR --ray --replicas 2:8 --replica-gpus 1      replicas on a Ray cluster, as many as are needed

The APIs of OpenAI (/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models) and of Anthropic
(/v1/messages); /health, /metrics, and at / a page to try it. Ctrl-C or SIGTERM stops the server when requests under
way are answered; a second one at once. --kernels is described in `khub engine generate --help`.
"""


def add_serve(commands: _SubParsersAction[Any]) -> None:
    """Add `khub engine serve`."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP, to OpenAI's and Anthropic's clients",
        description="Serve a model over HTTP, to OpenAI's and Anthropic's clients.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder in Hugging Face format, a GGUF file, or org/name on the hub")
    add("--revision", metavar="REV", help="branch, tag or commit of a model on the hub")
    add_arguments(parser)
    add("--kernels", default="torch", metavar="SPEC", help="what serves each slot (torch)")
    add("--fall-back", action="store_true", help="plain torch in place of a kernel that fails its self-test")
    add("--quantize", metavar="FORMAT", help="quantize the linear layers on load: int8, int4, w4a8 or fp8")
    add(
        "--speculate", metavar="SPEC", help="guess ahead: ngram:4, draft:DIR:4 or tree:DIR:16 (tokens, nodes)"
    )
    add_speed(parser)
    add("--dtype", default="float32", help="float32, bfloat16 or float16 (float32)")
    add("--token-budget", type=int, default=512, metavar="N", help="most tokens computed in one step (512)")
    add("--max-sequences", type=int, default=64, metavar="N", help="most continuations in one step (64)")
    add(
        "--num-blocks",
        type=int,
        metavar="N",
        help="blocks of 16 tokens in the KV cache (up to 512 MiB of them)",
    )
    add("--json", action="store_true", help="say the address as one line of JSON")
    add_cluster_arguments(parser)
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Run `khub engine serve`: the address to stdout once it answers, slots and the log to stderr."""
    options = options_of(args)
    out = sys.stdout

    def ready(url: str) -> None:
        line = json.dumps({"url": url, "model": options.name}) if args.json else None
        print(line or f"{options.name} answers at {url}/v1", file=out, flush=True)

    with needed("khub engine serve", "serve"):
        from ..engine import LLM
        from ..kernels import format_bindings, parse_sources
        from .process import serve

    arguments = {
        "revision": args.revision,
        "kernels": parse_sources(args.kernels),
        "quantize": args.quantize,
        "dtype": args.dtype,
        "token_budget": args.token_budget,
        "max_sequences": args.max_sequences,
        "num_blocks": args.num_blocks,
        "fall_back": args.fall_back,
        "speculate": args.speculate,
        **speed_of(args),
    }
    with suppress(KeyboardInterrupt):  # Ctrl-C before it serves
        if args.ray:
            with needed("khub engine serve --ray", "ray"):
                from ..server_ray.serve import serve as serve_on_ray

            return serve_on_ray(
                args.model, arguments, options, cluster_of(args), args.host, args.port, ready=ready
            )
        llm = LLM(args.model, **arguments)
        print(format_bindings(llm.kernel_table), file=sys.stderr)
        return serve(llm, options, args.host, args.port, ready=ready)
    return 0
