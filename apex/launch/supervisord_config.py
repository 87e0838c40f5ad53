"""Generate deploy/supervisord.conf from the catalog: `python -m apex.launch.supervisord_config`.

The file is the same for every run; APEX_* environment variables hold what differs. A path may have
any characters, so it comes in the form that its place needs: `…_WORD` is quoted for a command, and
in `…_TWICE` percent signs are doubled, since supervisord expands a program's log file twice.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from apex.config.sections import Config
from apex.daemons.catalog import CATALOG, DaemonSpec
from apex.errors import NOT_RESTARTED

HEAD = """\
; One program for each kind of daemon. `apex run` starts supervisord with this file; APEX_*
; environment variables hold what differs between runs (apex/launch/supervisord_config.py).
; `python -m apex.launch.supervisord_config` generates this file from apex/daemons/catalog.py.
; `exitcodes` lists the exit codes after which a daemon stays down, as a restart would not help.

[unix_http_server]
file = %(ENV_APEX_SUPERVISOR_SOCKET)s
chmod = 0700
username = apex
password = %(ENV_APEX_SUPERVISOR_PASSWORD)s

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
nodaemon = true
silent = true
logfile = %(ENV_APEX_RUN)s/logs/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = %(ENV_APEX_RUN)s/supervisord.pid
childlogdir = %(ENV_APEX_RUN)s/logs
minfds = %(ENV_APEX_FILES)s
umask = 077
"""


PYTHON_WORD, BIN_WORD, RUN_WORD = (f"%(ENV_APEX_{n}_WORD)s" for n in ("PYTHON", "BIN", "RUN"))


def text() -> str:
    """Text of deploy/supervisord.conf."""
    return "\n".join([HEAD, *map(_program, CATALOG)])


def _program(spec: DaemonSpec) -> str:
    """The section of one kind of daemon."""
    name, arguments = spec.kind, ""
    lines = [f"[program:{spec.kind}]"]
    if spec.count is not None:
        name, arguments = f"{spec.kind}_%(process_num)03d", " --index %(process_num)d"
        lines += [f"process_name = {name}", f"numprocs = %(ENV_{_count_variable(spec)})s"]
    if spec.enabled is not None:
        lines.append(f"autostart = %(ENV_{_enabled_variable(spec)})s")
    words = f"{PYTHON_WORD} {BIN_WORD}/{spec.kind} --run {RUN_WORD}"
    lines += [
        f"command = {words}{arguments}",
        f"priority = {spec.start_order}",
        "startsecs = 1",
        "startretries = 5",
        "autorestart = unexpected",
        f"exitcodes = {','.join(str(int(code)) for code in NOT_RESTARTED)}",
        f"stopwaitsecs = {spec.stop_timeout_s:.0f}",
        "redirect_stderr = true",
        f"stdout_logfile = %(ENV_APEX_RUN_TWICE)s/logs/{name}.log",
        "stdout_logfile_maxbytes = %(ENV_APEX_LOG_BYTES)s",
        "stdout_logfile_backups = 1",
    ]
    return "".join(f"{line}\n" for line in lines)


def path_variables(run: Path, python: str, bin_folder: Path) -> dict[str, str]:
    """Environment variables that hold paths, in the forms that the file needs.

    Args:
        run: the run's directory.
        python: the interpreter.
        bin_folder: the directory of the daemons' executables.
    """
    return {
        "APEX_RUN": str(run),
        "APEX_RUN_TWICE": str(run).replace("%", "%%"),
        "APEX_RUN_WORD": quote(str(run)),
        "APEX_PYTHON_WORD": quote(python),
        "APEX_BIN_WORD": quote(str(bin_folder)),
    }


def variables(config: Config) -> dict[str, str]:
    """Environment variables that say which daemons a run has, and how many of each."""
    found = {}
    for spec in CATALOG:
        if spec.enabled is not None:
            found[_enabled_variable(spec)] = "true" if spec.enabled(config) else "false"
        if spec.count is not None:
            found[_count_variable(spec)] = str(spec.count(config))
    return found


def _enabled_variable(spec: DaemonSpec) -> str:
    return f"APEX_{spec.kind.upper()}"


def _count_variable(spec: DaemonSpec) -> str:
    return f"APEX_{spec.kind.upper()}S"


if __name__ == "__main__":
    print(text(), end="")
