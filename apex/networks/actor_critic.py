"""Actor-critic network: a policy and a value head on one torso, recurrent or not."""

from __future__ import annotations

from torch import Tensor

from apex.envs.spec import EnvSpec
from apex.networks.full_precision import OutputLayer
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.sequence import Layers, SequenceNetwork
from apex.networks.torsos import DEFAULT_ENCODERS, Encoders


class ActorCriticNetwork(SequenceNetwork):
    """Logits of a softmax policy and a state value (Espeholt et al., 2018, figure 3).

    An action of several integers has a softmax of its own for each: the logits are joined.

    Args:
        spec: specification of an environment with discrete or multi-discrete actions.
        layers: the layers below the heads.
        encoders: see `torso`.
    """

    def __init__(
        self, spec: EnvSpec, layers: Layers, encoders: Encoders = DEFAULT_ENCODERS
    ) -> None:
        super().__init__(spec, layers, encoders)
        self.policy = OutputLayer(self.core.out_features, sum(spec.head_sizes))
        self.value = OutputLayer(self.core.out_features, 1)

    def forward(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B, L, sum of head sizes]`, values `[B, L]`, and the last recurrent state."""
        features, core_state = self.features(inputs)
        return self.policy(features), self.value(features).squeeze(-1), core_state
