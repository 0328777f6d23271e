"""Whether a network that learned from one example became the identity or a constant map."""

from collections.abc import Iterable
from typing import final

import torch

from lightning_depth.errors import UserError
from lightning_depth.measures.identity import at_correlation, cosine_to, mse_to
from lightning_depth.probes import AbstractSampleProbe, ArrayKey, Key, Look, Picture, Schedule, Value


@final
class IdentityConstant(AbstractSampleProbe):
    """Correlation and MSE of predictions to the identity and to the constant map (zhang2019 3.3, Figs 5 and 7, App. I).

    The inputs have a chosen correlation rho (cosine) to the training example and its norm; for each rho there are
    `draws` of Gaussian pixels, the same ones at every look. The constant map returns the training example, the identity
    its input. Inputs are those that the network sees, after normalisation. A network whose outputs are not as large as
    its inputs is named, and nothing is read. Draws the predictions of the first draw.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        correlations: the rhos, each in [-1, 1]; None: 0, 0.1, ..., 1.
        draws: test inputs for each rho.
        example: which of the training samples is meant, in the order of a fixed shuffle; 0 where there is only one.
        name: what it is called in readings and logs; None: `identity_constant`.
    """

    keys = (
        Key(
            "identity",
            title="Correlation of predictions to the identity",
            unit="cosine",
            rows="correlation of the input",
            at="rho",
            definition="mean cosine of f(x) with x, for x at cosine ρ to the training example e and of its norm; one "
            "row for each ρ",
            source="zhang2019 3.3, Figs 5 and 7",
        ),
        Key(
            "constant",
            title="Correlation of predictions to the constant map",
            unit="cosine",
            rows="correlation of the input",
            at="rho",
            definition="mean cosine of f(x) with e",
            source="zhang2019 3.3, Figs 5 and 7",
        ),
        Key("identity_mse", at="rho", definition="mean squared difference of f(x) to x", source="zhang2019 App. I"),
        Key("constant_mse", at="rho", definition="mean squared difference of f(x) to e", source="zhang2019 App. I"),
    )
    arrays = (ArrayKey("predictions", "Predictions for inputs at growing correlation to the training example"),)
    cost = "—"

    def __init__(
        self,
        every: Schedule = 1,
        correlations: list[float] | None = None,
        draws: int = 10,
        example: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(every, None, name, "train", example + 1)
        self.correlations = [k / 10 for k in range(11)] if correlations is None else correlations
        if draws < 1 or not self.correlations or any(not -1 <= rho <= 1 for rho in self.correlations):
            raise UserError("IdentityConstant: correlations must lie in [-1, 1], and draws be at least 1.")
        self.draws, self.example = draws, example
        self._pictures: list[Picture] = []

    def measure(self, look: Look) -> Iterable[Value]:
        self._pictures = []
        inputs, _ = self.fixed_samples(look)
        if not self.is_real("inputs", inputs):
            return
        if len(inputs) <= self.example:
            raise UserError(f"IdentityConstant: example={self.example}, but there are {len(inputs)} training samples.")
        example = inputs[self.example]
        generator = torch.Generator().manual_seed(0)
        rhos = torch.tensor(self.correlations, dtype=torch.float64).repeat_interleave(self.draws)
        noise = torch.randn(len(rhos), *example.shape, generator=generator).to(example)
        x = at_correlation(example, rhos.to(example.device), noise)
        predictions = torch.cat([look.network(part) for part in torch.split(x, 256)])
        if predictions[0].numel() != example.numel():
            shapes = tuple(predictions.shape[1:]), tuple(example.shape)
            self.say_once("no reading: outputs of shape {} are no maps of inputs of shape {}.".format(*shapes))
            return
        if not predictions.isfinite().all():
            raise ValueError("predictions are not finite")
        predictions = predictions.view_as(x)
        found = {
            "identity": cosine_to(predictions, x),
            "constant": cosine_to(predictions, example),
            "identity_mse": mse_to(predictions, x),
            "constant_mse": mse_to(predictions, example),
        }
        for key, values in found.items():
            for rho, value in zip(self.correlations, values.view(-1, self.draws).mean(1), strict=True):
                yield "", key, float(value), rho
        if predictions.dim() == 4:
            names = [f"rho={rho:g}" for rho in self.correlations]
            shown = {"input": x, "prediction": predictions}
            self._pictures = [Picture(n, "predictions", v[:: self.draws].mean(1), names) for n, v in shown.items()]

    def draw(self) -> Iterable[Picture]:
        return self._pictures
