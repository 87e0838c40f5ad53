"""Names of the Atari games, as ALE registers them with gymnasium."""

from __future__ import annotations

import difflib
import re

import gymnasium as gym

from apex.errors import EnvError

PREFIX = "ALE/"
ENTRY_POINT = "ale_py"
"""Module of the environments that ALE registers."""
VARIANT = re.compile(r"(-ram)?(NoFrameskip|Deterministic)?(-ram)?(-v\d+)?$")
"""What old ids append to the name of a game."""
EXAMPLES = 3


def games() -> dict[str, str]:
    """ALE's name of each game, such as `up_n_down`, by its id, `ALE/UpNDown-v5`.

    Raises:
        EnvError: ale-py is not installed.
    """
    try:
        import ale_py  # registers its environments
    except ImportError as error:
        raise EnvError(
            f"Atari games need ale-py ({error}): pip install 'apex-suite[atari]'"
        ) from None
    gym.register_envs(ale_py)
    return {
        spec.id: str(spec.kwargs["game"])
        for spec in gym.registry.values()
        if spec.id.startswith(PREFIX) and spec.version == 5 and _is_ale(spec.id)
    }


def game_of(env_id: str) -> str:
    """ALE's name of a game.

    Args:
        env_id: `ALE/Name-v5`.

    Raises:
        EnvError: ALE has no such game, or is not installed.
    """
    known = games()
    if env_id not in known:
        close = similar(env_id, list(known))
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise EnvError(
            f"env.id = '{env_id}': ALE has no such game; {meant}`python -c 'from ale_py import "
            f"roms; print(roms.get_all_rom_ids())'` lists all; their ids are ALE/NameOfGame-v5"
        )
    return known[env_id]


def similar(env_id: str, known: list[str]) -> list[str]:
    """The ids of the games whose names are most like that of `env_id`, best first."""
    by_name = {_name(one): one for one in known}
    close = difflib.get_close_matches(_name(env_id), by_name, EXAMPLES, cutoff=0.75)
    return [by_name[name] for name in close]


def refuse_other_ids(env_id: str) -> None:
    """Raise `EnvError` if an id means an Atari game but is not `ALE/Name-v5`.

    gymnasium's own ids, such as `PongNoFrameskip-v4`, give raw colour screens without frame
    skip, frame stack or no-ops, with which nothing is learned.

    Args:
        env_id: a gymnasium id, or `module:Id`.
    """
    module, _, name = env_id.rpartition(":")
    if module and module.partition(".")[0] != ENTRY_POINT:
        return
    if not module and name in gym.registry and not _is_ale(name):
        return
    try:
        known = list(games())
    except EnvError:  # without ale-py the id is merely unknown
        return
    same = [one for one in known if _name(one) == _name(name)]
    if not (module or same or _is_ale(name)):
        return
    meant = (same or similar(name, known) or ["ALE/Pong-v5"])[0]
    raise EnvError(
        f"env.id = '{env_id}': write {meant}. apex makes Atari games itself, with the settings of "
        f"[env]: frame_skip, frame_stack, frame_size, repeat_action_probability, obs_type and "
        "others. For wrappers of your own, name a function that makes the wrapped environment: "
        "path/to/file.py:function"
    )


def _is_ale(env_id: str) -> bool:
    """Whether gymnasium's registry has this id from ALE."""
    spec = gym.registry.get(env_id)
    return spec is not None and str(spec.entry_point).startswith(ENTRY_POINT)


def _name(env_id: str) -> str:
    """The name of a game in an id of any form, in lower-case letters and digits."""
    name = VARIANT.sub("", env_id.removeprefix(PREFIX))
    return re.sub(r"[^a-z0-9]", "", name.lower())
