"""What limits a runner: its sandbox and its memory."""

from dataclasses import dataclass

from replaceme_core.runner.memory_limit import MemoryLimit
from replaceme_core.runner.sandbox import NO_SANDBOX, Sandbox, SandboxMode, choose_sandbox


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Without arguments: no sandbox, no limit of memory."""

    sandbox: Sandbox = NO_SANDBOX
    memory: MemoryLimit | None = None


UNCONFINED = Confinement()


def choose_confinement(
    mode: SandboxMode, *, user: str | None, own_command: bool, memory_bytes: int | None
) -> Confinement:
    """The confinement that settings ask for, tried on this machine. Raises `InvalidInput` as `choose_sandbox` does."""
    sandbox = choose_sandbox(mode, user=user, own_command=own_command)
    return Confinement(sandbox=sandbox, memory=MemoryLimit.of_setting(memory_bytes))
