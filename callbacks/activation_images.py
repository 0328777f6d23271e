"""What the layers of a convolutional network show of an image."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from lightning_depth.measures.channels import most_correlated_channel, top_singular_image, upper_output
from lightning_depth.probes import AbstractSampleProbe, ArrayKey, Key, Look, Picture, Schedule, Split, Value
from lightning_depth.probes.calls import INPUT, Call, outputs_of, stages


@final
class ActivationImages(AbstractSampleProbe):
    """Each layer's activations as images: top singular vector across channels, best channel (zhang2019 3.4, App. E).

    Readings are means over the samples. Draws both images (a singular vector with the sign that correlates with the
    input), and with `upper` what the upper sub-network makes of the input image (zhang2019 3.5, App. G).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: the input and the stages that return images.
        split: `val` or `train`.
        samples: how many images.
        upper: for a network that returns images: also feed the input image directly to each layer, its mean channel
            repeated as often as the layer has input channels.
        name: what it is called in readings and logs; None: `activation_images`.
    """

    keys = (
        Key(
            "share",
            title="Share of activations in one image (σ₁² / Σσ²)",
            title_one="Share of activations of {layer} in one image",
            unit="share",
            definition="σ₁² / Σσ² of a layer's activations, channels × positions: how much one image says of all "
            "channels",
            source="zhang2019 3.4, Fig. 8",
        ),
        Key(
            "correlation",
            title="Best channel's correlation with the input image",
            title_one="Best channel of {layer}: correlation with the input",
            unit="cosine",
            definition="largest cosine of a channel with the input image, resized",
            source="zhang2019 App. E",
        ),
    )
    arrays = (
        ArrayKey("images", "Activations: the top singular vector across channels"),
        ArrayKey("channels", "Activations: the channel that correlates most with the input"),
        ArrayKey("upper", "What the upper sub-network makes of the input image, fed directly to a layer"),
    )
    cost = "0.05 s"

    def __init__(
        self,
        every: Schedule = "geometric",
        layers: list[str] | None = None,
        split: Split = "val",
        samples: int = 8,
        upper: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name, split, samples)
        self.upper = upper
        self._pictures: list[Picture] = []

    def _calls_with_images(self, look: Look) -> list[Call]:
        trunk = (INPUT, *stages(look.calls))
        watched = self.watched(look, lambda call: len(call.output_shape or ()) == 3 and call.module_name in trunk)
        found = [call for call in watched if len(call.output_shape or ()) == 3]
        for call in watched:
            if call not in found:
                self.say_once(f"{call.name} is left out: it returns no image.")
        if self.layers is None and all(call.name == INPUT for call in found):
            self.say_once("no reading: no stage of this network returns images.")
            return []
        return found

    def measure(self, look: Look) -> Iterable[Value]:
        self._pictures = []
        calls = self._calls_with_images(look)
        inputs, _ = self.fixed_samples(look)
        for call in calls:
            activations = outputs_of(look.network, [call], inputs)[call.name]
            if not activations.isfinite().all():
                raise ValueError(f"{call.name}: activations are not finite")
            top = top_singular_image(activations, inputs)
            best = most_correlated_channel(activations, inputs)
            yield call.name, "share", float(top.share.mean())
            yield call.name, "correlation", float(best.correlation.mean())
            channels = activations[torch.arange(len(inputs)), best.channel]
            self._pictures += [Picture(call.name, "images", top.image), Picture(call.name, "channels", channels)]
        if self.upper:
            self._feed_upper(look, calls, inputs)

    def _feed_upper(self, look: Look, calls: list[Call], inputs: Tensor) -> None:
        image = inputs.mean(1, keepdim=True)
        for call in calls:
            if call.name == INPUT or len(call.input_shape or ()) != 3:
                continue
            repeated = image.expand(-1, (call.input_shape or (1,))[0], -1, -1).contiguous()
            try:
                output = upper_output(look.network, call.name, repeated, inputs)
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
