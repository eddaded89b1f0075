"""What limits a runner: its sandbox and its memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from replaceme_core.runner.memory_limit import MemoryLimit
from replaceme_core.runner.sandbox import NO_SANDBOX, Sandbox, SandboxMode, choose_sandbox


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Without arguments: no sandbox, no limit of memory."""

    sandbox: Sandbox = NO_SANDBOX
    memory: MemoryLimit | None = None

    def for_plan(self, planned: Callable[[], int]) -> "Confinement":
        """The same for a job that is planned to take so many bytes of the host's memory."""
        if self.memory is None or self.memory.named:
            return self
        return replace(self, memory=self.memory.for_plan(planned()))


UNCONFINED = Confinement()


def choose_confinement(
    mode: SandboxMode, *, user: str | None, own_command: bool, memory_bytes: int | None
) -> Confinement:
    """The confinement that settings ask for, tried on this machine. Raises `InvalidInput` as `choose_sandbox` does."""
    sandbox = choose_sandbox(mode, user=user, own_command=own_command)
    return Confinement(sandbox=sandbox, memory=MemoryLimit.of_setting(memory_bytes))
