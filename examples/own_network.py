"""Ape-X DQN with a network of your own, and nothing else changed.

apex run --algorithm examples/own_network.py:WideDQN --preset cartpole
"""

from apex.api import ApexDQN, PositiveInt, nn, torso


class WideDQN(ApexDQN):
    class Config(ApexDQN.Config, frozen=True):
        """All keys of Ape-X DQN, and one more: `--set algorithm.width=512`."""

        width: PositiveInt = 256

    def network(self) -> nn.Module:
        """One wide normalised layer after a torso that knows images from vectors; no dueling."""
        below = torso(self.spec, self.config.conv)
        return nn.Sequential(
            below,
            nn.Linear(below.out_features, self.config.width),
            nn.LayerNorm(self.config.width),
            nn.ReLU(),
            nn.Linear(self.config.width, self.spec.num_actions),
        )
