"""What an engine's configuration promises: TCCD with these banks, in every process that serves the engine.

`VLLM_PLUGINS` says in each process which plugins are loaded, and `TCCD_BANK` need not reach a worker on another
machine. So the front end writes its banks' digests into the configuration, which vLLM hands to every process, and
each process checks that it can keep the promise: as it receives it, and once more where it starts its part.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from tccd.decoding.vllm import banks, joints, objects
from tccd.errors import BankMismatchError, ConfigError

KEY = "tccd"
PLUGIN = "tccd.decoding.vllm.plugin:register"
_WITHOUT = "or start vLLM without TCCD_BANK to go without TCCD"


class Promise(dict[str, str]):
    """Digest of each bank by its name; a process that can't keep it fails as it receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return receive, (dict(self),)


def receive(digests: dict[str, str]) -> Promise:
    """A promise that came from another process.

    Raises:
        TCCDError: this process will not load the plugin, or has no bank, or other ones.
    """
    if not joints.installed() and not plugin_loads():
        raise ConfigError(without_plugin())
    check_banks(digests)
    return Promise(digests)


def make(config: Any) -> None:
    """Write what this process loaded into an engine's configuration."""
    objects.hand_down(config, KEY, Promise(banks.loaded().digests))


def of(config: Any) -> Promise | None:
    """What a configuration promises; None without TCCD."""
    extra = getattr(config, "additional_config", None)
    return extra.get(KEY) if isinstance(extra, dict) else None


def check(config: Any) -> None:
    """Make sure that this process and an engine's configuration agree about TCCD.

    Raises:
        ConfigError: one has TCCD and the other has not; says which process, and what to do.
        BankMismatchError: this process has other banks than the front end.
    """
    promised = of(config)
    if promised is None:
        if banks.enabled():
            raise ConfigError(
                f"{banks.VARIABLE} is set in {_here()}, but the engine was configured without TCCD: its front end "
                f"ran without tccd's plugin{_chosen()}. Add tccd to VLLM_PLUGINS, set {banks.VARIABLE} in the "
                f"front end, {_WITHOUT}"
            )
        return
    if not joints.installed():
        raise ConfigError(without_plugin())
    check_banks(promised)


def check_banks(promised: dict[str, str]) -> None:
    """Make sure that this process has the front end's banks.

    Raises:
        ConfigError: it has none.
        BankMismatchError: its banks have other names or other centroids.
        BankError: a file can't be read.
    """
    if not banks.enabled():
        raise ConfigError(
            f"the engine was configured with TCCD, but {banks.VARIABLE} is not set in {_here()}. Set it there too "
            f"(Ray: VLLM_RAY_EXTRA_ENV_VARS_TO_COPY={banks.VARIABLE}), {_WITHOUT}"
        )
    found = banks.loaded().digests
    differ = [name for name in sorted({*promised, *found}) if promised.get(name) != found.get(name)]
    if differ:
        said = "; ".join(f"{n!r}: front end {_short(promised, n)}, here {_short(found, n)}" for n in differ)
        raise BankMismatchError(
            f"{_here()} has other banks than the front end ({said}). Give every process the same files, and start "
            "vLLM again where one was replaced"
        )


def plugin_loads() -> bool:
    """Whether vLLM loads our plugin in this process; what `VLLM_PLUGINS` and the installed packages say."""
    names = {e.name for e in entry_points(group="vllm.general_plugins") if e.value == PLUGIN}
    chosen = os.environ.get("VLLM_PLUGINS")
    return bool(names if chosen is None else names & set(chosen.split(",")))


def without_plugin() -> str:
    """What to say where our plugin is missing in this process."""
    return (
        f"tccd's plugin is not loaded in {_here()}{_chosen()}. Add tccd to VLLM_PLUGINS in every process, "
        f"{_WITHOUT}"
    )


def _here() -> str:
    return f"this process of the engine (pid {os.getpid()})"


def _chosen() -> str:
    chosen = os.environ.get("VLLM_PLUGINS")
    return "" if chosen is None else f" (VLLM_PLUGINS is {chosen[:200]!r})"


def _short(digests: dict[str, str], name: str) -> str:
    return digests[name][:12] if name in digests else "none"
