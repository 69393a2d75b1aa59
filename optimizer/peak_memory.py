"""Peak resident memory of this process as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process since it began, or since `reset_peak_rss`.

    From VmHWM: `ru_maxrss` would count the parent's as well after a vfork. Only where there is no /proc it must do.
    """
    found = _field("VmHWM")
    if found is not None:
        return found
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_rss() -> bool:
    """Let the peak begin anew at what is resident now; False where the kernel does not allow it.

    Source: proc_pid_clear_refs(5), value 5, Linux 4.0.
    """
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
