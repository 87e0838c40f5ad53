"""Actor-critic network: a policy and a value head on one torso, recurrent or not."""

from __future__ import annotations

from torch import Tensor

from apex.envs.spec import EnvSpec
from apex.networks.full_precision import OutputLayer
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.sequence import Layers, SequenceNetwork


class ActorCriticNetwork(SequenceNetwork):
    """Logits of a softmax policy and a state value (Espeholt et al., 2018, figure 3).

    Args:
        spec: specification of an environment with discrete actions.
        layers: the layers below the heads.
    """

    def __init__(self, spec: EnvSpec, layers: Layers) -> None:
        super().__init__(spec, layers)
        self.policy = OutputLayer(self.core.out_features, spec.num_actions)
        self.value = OutputLayer(self.core.out_features, 1)

    def forward(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B, L, A]`, values `[B, L]`, and the recurrent state after the last step."""
        features, core_state = self.features(inputs)
        return self.policy(features), self.value(features).squeeze(-1), core_state
