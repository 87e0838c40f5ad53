"""Ape-X DQN with a network of your own, and nothing else changed.

apex run --algorithm examples/own_network.py:WideDQN --preset cartpole
"""

from torch import Tensor, nn

from apex.algos.apex_dqn import ApexDQN, ApexDQNConfig
from apex.config.sections import PositiveInt
from apex.networks.torsos import ImageTorso, VectorTorso


class WideDQNConfig(ApexDQNConfig, frozen=True):
    """All keys of Ape-X DQN, and one more: `--set algorithm.width=512`."""

    name: str = "examples/own_network.py:WideDQN"
    width: PositiveInt = 256


class WideNetwork(nn.Module):
    """One wide normalised layer after a torso that knows images from vectors; no dueling."""

    def __init__(self, spec, config):
        super().__init__()
        self.torso = ImageTorso(spec, config.conv) if spec.frame_stack else VectorTorso(spec)
        self.head = nn.Sequential(
            nn.Linear(self.torso.out_features, config.width),
            nn.LayerNorm(config.width),
            nn.ReLU(),
            nn.Linear(config.width, spec.num_actions),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """`[B, *policy_shape]` to Q-values `[B, num_actions]`."""
        return self.head(self.torso(observations))


class WideDQN(ApexDQN):
    Config = WideDQNConfig

    def network(self) -> nn.Module:
        return WideNetwork(self.spec, self.config)
