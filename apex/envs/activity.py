"""What the environments of this process are doing, for the threads that watch them."""

from __future__ import annotations


class Activity:
    """The call into an environment that runs now, written by the thread that makes the call.

    A simulator may take many seconds to be made, reset or stepped, and several stand one after
    the other. Each call that begins is progress of the work loop, as a beat of it is; and when a
    call does not return, the activity says which one it is.
    """

    def __init__(self) -> None:
        self.begun = 0
        """Number of calls that have begun. It changes while environments make progress."""
        self._call: tuple[str, int | None] | None = None

    def begin(self, call: str, env: int | None = None) -> None:
        """Note a call that begins.

        Args:
            call: `making`, `reset`, `step` or `close`.
            env: index of the environment; None: all, in one call.
        """
        self.begun += 1
        self._call = call, env

    def end(self) -> None:
        """Note that the last call has returned."""
        self._call = None

    def describe(self) -> str:
        """The running call, such as `reset of environment 3`; empty if there is none."""
        now = self._call
        if now is None:
            return ""
        call, env = now
        return f"{call} of {'the environments' if env is None else f'environment {env}'}"
