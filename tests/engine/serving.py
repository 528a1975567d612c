"""The real `khub engine serve` in a process of its own, and stock clients of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx
import openai
from engine_models import SHIPPED
from khub_process import khub_command, khub_environment

NAME = "stdlib-llama"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>\n{% endfor %}"
    "{% endfor %}{% if tools %}<tools>{{ tools | tojson }}</tools> Answer in <tool_call>{}</tool_call>.\n{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    errors: Path

    def openai(self, key: str = "none", retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, timeout=60)

    def anthropic(self, key: str = "none") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, summed over the series that have these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = [
            float(value)
            for series, value in re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
            if all(f'{key}="{wanted}"' in series for key, wanted in labels.items())
        ]
        assert found, f"{name} {labels} is not in {text}"
        return sum(found)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll, and fail after a minute."""
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, f"not within a minute: {what}"
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.05)

    def idle(self) -> bool:
        """Whether nothing runs, nothing waits and no block of the cache is held."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return not any(self.metric(name) for name in names)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End the process with a signal; returns its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


StartServer = Callable[..., Server]


def start(folder: Path, errors: Path, *arguments: str | Path, **environment: str) -> Server:
    """Serve a model folder on a free port, once it answers."""
    with errors.open("w") as log:
        process = subprocess.Popen(
            khub_command("engine", "serve", folder, "--port", "0", "--json", *arguments),
            env=khub_environment() | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"khub engine serve ended with {process.wait()}: {errors.read_text()}"
    return Server(json.loads(line)["url"], process, errors)


def chatting(folder: Path) -> Path:
    """A copy of the shipped model in `folder`, with a template for conversations; its name stays."""
    made = folder / NAME
    made.mkdir(parents=True)
    for file in SHIPPED.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, made / file.name)
    (made / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return made


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
