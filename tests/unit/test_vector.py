"""The vector environment of this process: what it keeps of `info`, and how it resets and closes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from apex.envs.vector import SerialVectorEnv, reported
from apex.errors import EnvFaultError
from tests.support.environments import Counted, InfoVaries, own

STAY = np.zeros(2, dtype=np.int64)


def test_info_of_any_shape_and_type_is_no_fault():
    environments = own(InfoVaries)
    environments.reset(0)
    seen = [environments.step(STAY).observations[:, 0].tolist() for _ in range(7)]
    environments.close()
    assert seen == [[n, n] for n in (1, 2, 3, 4, 5, 0, 1)]


class Masked(Counted):
    """Reports a mask in one array that it changes in place, and its lives at odd steps only."""

    def __init__(self) -> None:
        super().__init__()
        self._mask = np.zeros(2, np.int8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, _ = super().reset(seed=seed)
        return observation, {"lives": 3, "action_mask": self._mask}

    def step(self, action: Any) -> Any:
        observation, *rest, _ = super().step(action)
        self._mask[:] = self.steps
        info = {"lives": 3 - self.steps} if self.steps % 2 else {}
        return observation, *rest, {**info, "action_mask": self._mask, "other": object()}


def test_only_the_named_keys_are_kept_as_they_were_at_that_step():
    vector = SerialVectorEnv([Masked, Masked], ("lives", "action_mask"))
    _, infos = vector.reset(seed=1)
    assert sorted(infos) == ["action_mask", "lives"] and infos["lives"] == [3, 3]
    first, second = (vector.step(STAY)[4] for _ in range(2))
    vector.close()
    assert [mask.tolist() for mask in first["action_mask"]] == [[1, 1], [1, 1]]
    assert first["lives"] == [2, 2]
    assert "lives" not in second and reported(second, "lives") is None


def test_values_are_read_alike_from_lists_arrays_and_masked_arrays():
    assert reported({"lives": [3, None]}, "lives") == [3, None]
    assert reported({"lives": np.array([3, 2])}, "lives") == [3, 2]
    merged = {"lives": np.array([3, 0]), "_lives": np.array([True, False])}
    assert reported(merged, "lives") == [3, None]
    assert reported(merged, "action_mask") is None


def test_lost_lives_count_where_they_are_reported():
    environments = own(Masked, life_loss_ends=True)
    environments.reset(0)
    lost = [environments.step(STAY).life_lost.tolist() for _ in range(4)]
    environments.close()
    assert lost == [[True, True], [False, False], [True, True], [False, False]]


class WordsForLives(Counted):
    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"lives": "three"}


def test_lives_that_are_no_number_are_a_fault_only_where_lives_are_read():
    ignored = own(WordsForLives)
    ignored.reset(0)
    ignored.step(STAY)
    ignored.close()
    environments = own(WordsForLives, life_loss_ends=True)
    environments.reset(0)
    with pytest.raises(EnvFaultError, match=r"info\['lives'\].*env\.life_loss_ends = false"):
        environments.step(STAY)
    environments.close()


class Sampled(Counted):
    """Observes a random number of its own seed."""

    def _observe(self) -> np.ndarray:
        return np.array([self.np_random.integers(2**20)], np.float32)


def test_seeds_count_up_and_a_number_repeats_the_episode():
    vector = SerialVectorEnv([Sampled] * 3)
    alone = Sampled()
    expected = [alone.reset(seed=7 + env)[0].tolist() for env in range(3)]
    assert vector.reset(seed=7)[0].tolist() == expected
    assert vector.reset(seed=[9, 8, 7])[0].tolist()[2] == expected[0]
    vector.close()


class CloseFails(Counted):
    closed: ClassVar[list[int]] = []

    def close(self) -> None:
        self.closed.append(id(self))
        raise RuntimeError("close failed")


def test_all_are_closed_once_although_closing_fails():
    CloseFails.closed.clear()
    vector = SerialVectorEnv([CloseFails, CloseFails])
    with pytest.raises(RuntimeError, match="close failed"):
        vector.close()
    vector.close()
    assert len(set(CloseFails.closed)) == len(CloseFails.closed) == 2


def test_those_made_before_a_failure_are_closed():
    CloseFails.closed.clear()

    def broken() -> Counted:
        raise ValueError("no display")

    with pytest.raises(ValueError, match="no display"):
        SerialVectorEnv([CloseFails, broken])
    assert len(CloseFails.closed) == 1
