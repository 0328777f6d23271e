"""How far each tensor of weights has moved from where it started."""

from collections.abc import Iterable
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.measures.weights import relative_distance
from lightning_depth.probes import AbstractProbe, Key, Look, Schedule, Value


@final
class WeightDistance(AbstractProbe):
    """||W - W0||_F / ||W0||_F of each tensor of parameters (zhang2019 App. D).

    W0 are the initial weights: drawn again from their seed where the network can (`initial_state`, as every family
    here), else those at the start of training, which checkpoints then carry. A tensor that starts at zero (most biases)
    has no relative distance and is left out; a warning names the first.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on the names of parameters or of their modules; None: all.
        name: what it is called in readings and logs; None: `weight_distance`.
    """

    keys = (
        Key(
            "distance",
            title="Distance of each tensor from its start, ‖W − W₀‖ / ‖W₀‖",
            title_one="Distance of {layer} from its start",
            unit="relative distance",
            definition="‖W − W₀‖ / ‖W₀‖ of each tensor of parameters; those that start at zero are left out",
            source="zhang2019 App. D",
        ),
    )
    cost = "0.01 s"

    def __init__(self, every: Schedule = 1, layers: list[str] | None = None, name: str | None = None) -> None:
        super().__init__(every, layers, name)
        self._initial: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if hasattr(pl_module, "initial_state"):
            return
        if trainer.global_step == 0:
            self._initial = {name: p.detach().cpu().clone() for name, p in pl_module.named_parameters()}
        elif not self._initial:  # the run began without this probe
            raise _no_start()

    def measure(self, look: Look) -> Iterable[Value]:
        draw: Any = getattr(look.network, "initial_state", None)
        if not self._initial and draw is None:
            raise _no_start()
        initial: dict[str, Tensor] = self._initial or draw()
        parameters = dict(look.network.named_parameters())
        named = {n: p for n, p in parameters.items() if self.is_named(n) or self.is_named(n.rpartition(".")[0])}
        if not named:
            raise UserError(f"WeightDistance: no parameter or module matches {self.layers}.")
        at_zero = [name for name in named if not initial[name].any()]
        if at_zero:
            more = f" and {len(at_zero) - 1} more start" if len(at_zero) > 1 else " starts"
            self.say_once(f"{at_zero[0]}{more} at zero: no relative distance.")
        for name, parameter in named.items():
            if name not in at_zero:
                try:
                    yield name, "distance", relative_distance(parameter.detach().cpu(), initial[name])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """The weights at the start, where they cannot be drawn again."""
        return {"initial": self._initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._initial = state_dict["initial"]


def _no_start() -> UserError:
    return UserError("WeightDistance needs the weights at the start of training, which this checkpoint lacks.")
