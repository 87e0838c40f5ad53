"""Ape-X DQN with a network of your own.

apex run --algorithm examples/own_network.py:WideDQN --preset cartpole
"""

from apex.api import ApexDQN, PositiveInt, nn, torso


class WideDQN(ApexDQN):
    class Config(ApexDQN.Config, frozen=True):
        """All keys of Ape-X DQN, and one more: `--set algorithm.width=512`."""

        width: PositiveInt = 256

    def network(self) -> nn.Module:
        """A torso for images or vectors, then one wide normalised layer; no dueling."""
        below = torso(self.spec, self.config.conv, encoders=self.encoders())
        return nn.Sequential(
            below,
            nn.Linear(below.out_features, self.config.width),
            nn.LayerNorm(self.config.width),
            nn.ReLU(),
            nn.Linear(self.config.width, self.spec.num_actions),
        )
