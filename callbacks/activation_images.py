"""What the layers of a convolutional network show of an image."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_depth.measures.channels import most_correlated_channel, top_singular_image, upper_output
from lightning_depth.probes import AbstractSampleProbe, Picture, Schedule
from lightning_depth.probes.calls import INPUT, Call, outputs_of, stages
from lightning_depth.probes.samples import Split


@final
class ActivationImages(AbstractSampleProbe):
    """Each layer's activations as images: top singular vector across channels, best channel (zhang2019 3.4, App. E).

    The sign of a singular vector is that with which it correlates with the input image.

    Reads for each layer, as means over the samples: `share` (sigma_1^2 / sum sigma^2, how much one image says of all
    channels) and `correlation` (largest cosine of a channel with the input image, resized). Draws both images, and with
    `upper` what the upper sub-network makes of the input image itself (zhang2019 3.5, App. G).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: the input and the stages that return images.
        split: `held_out` or `train`.
        samples: how many images.
        upper: for a network that returns images: also feed the input image directly to each layer, its mean channel
            repeated as often as the layer has input channels.
    """

    def __init__(
        self,
        every: Schedule = "geometric",
        layers: list[str] | None = None,
        split: Split = "held_out",
        samples: int = 8,
        upper: bool = False,
    ) -> None:
        super().__init__(every, layers, split, samples)
        self.upper = upper
        self._calls: list[Call] = []
        self._pictures: list[Picture] = []

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        trunk = stages(calls)

        def default(call: Call) -> bool:
            name = call.name.split("#")[0]
            return len(call.output_shape or ()) == 3 and (name == INPUT or name in trunk)

        self._calls = []
        for call in self.watched(calls, default):
            if len(call.output_shape or ()) == 3:
                self._calls.append(call)
            else:
                self.say_once(f"{call.name} is left out: it returns no image.")
        if not self._calls:
            self.say_once("no reading: no stage of this network returns images.")
        return []

    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        self._pictures = []
        for call in self._calls:
            activations = outputs_of(self.network, [call.name], inputs)[call.name]
            if not activations.isfinite().all():
                raise ValueError(f"{call.name}: activations are not finite")
            top = top_singular_image(activations, inputs)
            best = most_correlated_channel(activations, inputs)
            yield call.name, "share", float(top.share.mean())
            yield call.name, "correlation", float(best.correlation.mean())
            self._pictures.append(Picture(call.name, "images", top.image))
            channels = activations[torch.arange(len(inputs)), best.channel]
            self._pictures.append(Picture(call.name, "channels", channels))
        if self.upper:
            self._feed_upper(inputs)

    def _feed_upper(self, inputs: Tensor) -> None:
        image = inputs.mean(1, keepdim=True)
        for call in self._calls:
            if call.name == INPUT or len(call.input_shape or ()) != 3:
                continue
            repeated = image.expand(-1, (call.input_shape or (1,))[0], -1, -1).contiguous()
            try:
                output = upper_output(self.network, call.name, repeated, inputs)
            except ValueError as error:
                self.say_once(f"no upper sub-network from {call.name}: {error}.")
                continue
            if output.dim() == 4:
                self._pictures.append(Picture(call.name, "upper", output.mean(1)))
            else:
                self.say_once("no upper sub-networks: the network returns no images.")
                return

    def draw(self) -> Iterable[Picture]:
        return self._pictures
