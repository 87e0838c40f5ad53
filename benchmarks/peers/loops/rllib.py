"""RLlib's DQN and IMPALA on Pong, with its new API stack."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import ray
from ray.rllib.algorithms import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.tune.registry import register_env

from benchmarks.peers.loops.pong import CONVOLUTIONS, DISCOUNT, N_STEP, STREAM_WIDTH
from benchmarks.peers.loops.rllib_network import ActorCritic
from benchmarks.peers.loops.serve import Step, serve

BUFFER = 20_000
LEARNING_STARTS = 1_000
FILTERS = [[*layer, "valid"] for layer in CONVOLUTIONS]


def _pong(config: Any) -> gym.Env[Any, Any]:
    gym.register_envs(ale_py)
    env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return wrap_atari_for_new_api_stack(env, dim=84, frameskip=4, framestack=4)


def dqn(batch: int, samples_per_step: float) -> AlgorithmConfig:
    """DQN: double, dueling, n-step and prioritized."""
    return (
        DQNConfig()
        .training(
            double_q=True,
            dueling=True,
            n_step=N_STEP,
            gamma=DISCOUNT,
            train_batch_size_per_learner=batch,
            training_intensity=samples_per_step,
            num_steps_sampled_before_learning_starts=LEARNING_STARTS,
            target_network_update_freq=1_000,
            grad_clip=10.0,
            replay_buffer_config={
                "type": "PrioritizedEpisodeReplayBuffer",
                "capacity": BUFFER,
                "alpha": 0.6,
                "beta": 0.4,
            },
        )
        .rl_module(
            model_config=DefaultModelConfig(
                conv_filters=FILTERS,
                head_fcnet_hiddens=[STREAM_WIDTH],
            )
        )
    )


def impala(batch: int, samples_per_step: float) -> AlgorithmConfig:
    """IMPALA: V-trace on unrolls, each used once."""
    return (
        IMPALAConfig()
        .training(
            gamma=DISCOUNT,
            train_batch_size_per_learner=batch,
            lr=6e-4,
            grad_clip=40.0,
            vf_loss_coeff=0.5,
            entropy_coeff=0.01,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActorCritic))
    )


ALGORITHMS = {"dqn": dqn, "impala": impala}


def training(
    algorithm: str, batch: int, samples_per_step: float, runners: int, num_envs: int,
    fragment: int, learners: int, threads: int,
) -> Step:  # fmt: skip
    """Step of a training algorithm; counts env steps and trained samples.

    Args:
        algorithm: one of `ALGORITHMS`.
        batch: env steps per update.
        samples_per_step: trained samples per env step; for replay only.
        runners: processes that step environments; 0: the algorithm's own process does.
        num_envs: environments per runner.
        fragment: steps of each environment in one sample.
        learners: processes that learn; 0: the algorithm's own process does.
        threads: torch threads of the learning process.
    """
    import torch

    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    register_env("pong", _pong)
    config = (
        ALGORITHMS[algorithm](batch, samples_per_step)
        .environment("pong", clip_rewards=True)
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=num_envs,
            rollout_fragment_length=fragment,
            num_cpus_per_env_runner=1,
        )
        .learners(num_learners=learners, num_gpus_per_learner=0, num_cpus_per_learner=1)
        .reporting(min_time_s_per_iteration=0.5, min_sample_timesteps_per_iteration=0)
        .debugging(seed=1, log_level="ERROR")
    )
    torch.set_num_threads(threads)
    algo = config.build_algo()
    counted = {"env_steps": 0.0, "trained_samples": 0.0}

    def step() -> dict[str, float]:
        result = algo.train()
        now = _counts(result)
        if algorithm == "impala":  # it also counts the bootstrap step of each unroll
            now["trained_samples"] *= fragment / (fragment + 1)
        done = {kind: now[kind] - counted[kind] for kind in now}
        counted.update(now)
        return done

    while not step()["trained_samples"]:
        pass
    return step


def _counts(result: dict[str, Any]) -> dict[str, float]:
    """A metric over the whole run."""
    learned = result.get("learners", {}).get("__all_modules__", {})
    return {
        "env_steps": result["env_runners"].get("num_env_steps_sampled_lifetime", 0.0),
        "trained_samples": learned.get("num_env_steps_trained_lifetime", 0.0),
    }


if __name__ == "__main__":
    serve(training)
