"""Settings, read from the environment variables that every Hub client knows, at the time of each call.

HF_ENDPOINT             the hub to ask; https://huggingface.co when unset
HF_HUB_OFFLINE          1: send no request, use the cache
HF_TOKEN                token to send; else the file HF_TOKEN_PATH, else HF_HOME/token
HF_HUB_DISABLE_TELEMETRY  1: name nothing but this library in the User-Agent header
KHUB_CACHE_MAX_SIZE     like 5GB: after a download, variants that were used longest ago make room; unset, none does
KHUB_REFRESH            seconds for which a branch means the commit it meant last; 3600 when unset
LOCAL_KERNELS           org/name=/path:org/other=/path, folders to load instead (see source.py)
KERNELS_CACHE           folder that holds the cache; else HF_HOME, else ~/.cache/huggingface
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .errors import UsageError
from .record import Record

_PUBLIC_ENDPOINT = "https://huggingface.co"
_PUBLIC_HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
_REFRESH_S = 3600.0
CACHE_NAME = "kernel-hub"  # of our folder within KERNELS_CACHE, which other clients use as well
_TRUE = ("1", "on", "yes", "true")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *(?:([kmgt])(i)?)?b?", re.ASCII)
_FALSE = ("", "0", "off", "no", "false")


class Config(Record):
    """What one call runs under.

    `cache` is the folder that is ours alone, `refresh` counts in seconds, `max_cache` in bytes.
    """

    endpoint: str
    cache: Path
    offline: bool
    token: str | None
    refresh: float = _REFRESH_S
    user_agent: str = "kernel-hub"
    max_cache: int | None = None
    _unsaid = ("token",)

    @property
    def is_public(self) -> bool:
        """Whether anybody can publish there: the public hub by whichever name, rather than a hub of one's own."""
        host = (urlsplit(self.endpoint).hostname or "").rstrip(".")
        return any(host == name or host.endswith(f".{name}") for name in _PUBLIC_HOSTS)


def load_config(
    environ: Mapping[str, str] | None = None, user_agent: str | Mapping[str, object] | None = None
) -> Config:
    """Read the settings from `environ`, `os.environ` when None.

    `user_agent` is what the caller adds to the User-Agent header: text, or names with values.

    Raises:
        UsageError: a variable has a value that means nothing.
    """
    env = os.environ if environ is None else environ
    home = _folder(env, "HF_HOME") or _folder(env, "XDG_CACHE_HOME", "huggingface") or _default_home()
    return Config(
        endpoint=read_endpoint(env),
        cache=(_folder(env, "KERNELS_CACHE") or home) / CACHE_NAME,
        offline=_flag(env, "HF_HUB_OFFLINE") or _flag(env, "TRANSFORMERS_OFFLINE"),
        token=_token(env, home),
        refresh=_seconds(env, "KHUB_REFRESH", _REFRESH_S),
        user_agent=_user_agent(env, user_agent),
        max_cache=_max_cache(env),
    )


def read_endpoint(environ: Mapping[str, str] | None = None) -> str:
    """The hub's address alone, without a trailing slash: all that a kernel already loaded is looked up by.

    Raises:
        UsageError: HF_ENDPOINT is not an address.
    """
    value = (os.environ if environ is None else environ).get("HF_ENDPOINT", "")
    endpoint = (value or _PUBLIC_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an unclosed bracket
        valid = False
    if not valid or parts.query or parts.fragment or parts.username:
        raise UsageError(f"HF_ENDPOINT={value!r} is not a hub's address: write it like http://127.0.0.1:8000")
    return endpoint


def _default_home() -> Path:
    return Path("~/.cache/huggingface").expanduser()


def _folder(env: Mapping[str, str], name: str, *below: str) -> Path | None:
    value = env.get(name, "")
    if not value:
        return None
    path = Path(os.path.expandvars(value)).expanduser().joinpath(*below)
    try:
        is_other = path.exists() and not path.is_dir()
    except OSError as error:
        raise UsageError(
            f"{name}={value!r} cannot be used ({error.strerror}): set it to another folder"
        ) from None
    if is_other:
        raise UsageError(f"{name}={value!r} is not a folder: set it to one, or unset it")
    return path.absolute()


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "")
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"{name}={value!r} is neither true nor false: set it to 1 or 0")
    return value.lower() in _TRUE


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    value = env.get(name, "")
    if not value:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(f"{name}={value!r} is not a number of seconds: set it to 0 or more, or unset it")
    return seconds


def parse_size(text: str) -> int:
    """Bytes, from text like 5GB, 500 MB, 1.5GiB or 0.

    Raises:
        ValueError: it is written otherwise.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write it like 5GB, 500MB or 1.5GiB")
    power = "kmgt".index(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _max_cache(env: Mapping[str, str]) -> int | None:
    value = env.get("KHUB_CACHE_MAX_SIZE", "")
    try:
        return parse_size(value) if value else None
    except ValueError as error:
        raise UsageError(f"KHUB_CACHE_MAX_SIZE: {error}") from None


def _user_agent(env: Mapping[str, str], added: str | Mapping[str, object] | None) -> str:
    if not added or _flag(env, "HF_HUB_DISABLE_TELEMETRY"):
        return "kernel-hub"
    parts = [added] if isinstance(added, str) else [f"{name}/{value}" for name, value in added.items()]
    text = "; ".join(["kernel-hub", *parts])
    if not text.isascii() or not text.isprintable():
        raise UsageError(f"user_agent={added!r} cannot be sent as a header: use printable ASCII")
    return text


def _token(env: Mapping[str, str], home: Path) -> str | None:
    token = env.get("HF_TOKEN", "").strip()
    if not token:
        path = _token_path(env, home)
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the token file {path} cannot be read: {error}; set HF_TOKEN instead") from None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("HF_TOKEN holds characters no token has: copy it again")
    return token or None


def _token_path(env: Mapping[str, str], home: Path) -> Path:
    value = env.get("HF_TOKEN_PATH", "")
    return Path(os.path.expandvars(value)).expanduser() if value else home / "token"
