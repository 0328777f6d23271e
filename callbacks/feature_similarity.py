"""How alike the representations of a network's stages are, to each other and to those of another run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.measures.similarity import cka_matrix
from lightning_depth.probes import AbstractSampleProbe, ArrayKey, Key, Look, Picture, Schedule, Split, Value
from lightning_depth.probes.calls import INPUT, Call, outputs_of, stages


@final
class FeatureSimilarity(AbstractSampleProbe):
    """Debiased linear CKA (Kornblith et al. 2019; Nguyen et al. 2021) of the representations of all stages.

    Independent representations read 0, the same up to rotation and scale 1. Draws the matrix of all pairs of stages.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: the input and the stages (the trunk's children).
        split: `val` or `train`.
        samples: how many, at least 4.
        reference: a checkpoint of the same family, from another run or epoch.
        max_bytes: features that are held at a time. Where more are wanted, the samples go through the network several
            times, and a warning says so.
        name: what it is called in readings and logs; None: `feature_similarity`.
    """

    keys = (
        Key(
            "input",
            title="Similarity of each stage to the input (debiased linear CKA)",
            title_one="Similarity of {layer} to the input",
            unit="CKA",
            definition="debiased linear CKA of a stage's representation with the input's",
            source="Kornblith et al. 2019; Nguyen et al. 2021",
        ),
        Key(
            "previous",
            title="Similarity of each stage to the one before (debiased linear CKA)",
            title_one="Similarity of {layer} to the one before",
            unit="CKA",
            definition="with that of the stage before",
        ),
        Key("reference", definition="on request: with the same stage of another checkpoint of the family"),
    )
    arrays = (
        ArrayKey("cka", "Similarity of the representations of all stages (debiased linear CKA)"),
        ArrayKey("cka_reference", "Similarity to the stages of the reference (debiased linear CKA)"),
    )
    cost = "0.3 s"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "val",
        samples: int = 256,
        reference: str | None = None,
        max_bytes: int = 2**29,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name, split, samples)
        if reference is not None and not Path(reference).is_file():
            raise UserError(f"FeatureSimilarity: there is no checkpoint {reference}.")
        self.reference, self.max_bytes = reference, max_bytes
        self._pictures: list[Picture] = []

    def measure(self, look: Look) -> Iterable[Value]:
        self._pictures = []
        trunk = stages(look.calls)
        calls = self.watched(look, lambda call: call.module_name in (INPUT, *trunk))
        if not calls:
            return
        names = [call.name for call in calls]
        inputs, _ = self.fixed_samples(look)
        grams = self._grams(look.network, calls, inputs)
        count = len(grams)
        if self.reference is not None:
            grams = torch.cat([grams, self._grams(_referred(self.reference, look.network), calls, inputs)])
        every = cka_matrix(grams)
        matrix, across = every[:count, :count], every[:count, count:]
        self._pictures.append(Picture("", "cka", matrix, names))
        if self.reference is not None:
            self._pictures.append(Picture("", "cka_reference", across, names))
        for place, name in enumerate(names):
            if INPUT in names:
                yield name, "input", float(matrix[place, names.index(INPUT)])
            if place > 0:
                yield name, "previous", float(matrix[place, place - 1])
            if self.reference is not None:
                yield name, "reference", float(across[place, place])

    def _grams(self, network: nn.Module, calls: Sequence[Call], inputs: Tensor) -> Tensor:
        """The Gram matrices of the centred features of calls, (calls, n, n), float64."""
        n = len(inputs)
        grams = {call.name: inputs.new_zeros(n, n, dtype=torch.float64) for call in calls}
        parts = list(_parts(calls, self.max_bytes // (n * 8)))
        if len(parts) > 1:
            self.say_once(f"features exceed max_bytes: the samples go through the network {len(parts)} times.")
        for part in parts:
            for name, columns in _features(network, calls, inputs, part).items():
                if not columns.isfinite().all():
                    raise ValueError(f"{name}: representations are not finite")
                centred = columns - columns.mean(0)
                grams[name] += centred @ centred.mT
        return torch.stack(list(grams.values()))

    def draw(self) -> Iterable[Picture]:
        return self._pictures


def _referred(path: str, network: LightningModule) -> LightningModule:
    """The network of another checkpoint of the family of `network`."""
    try:
        loaded = type(network).load_from_checkpoint(path, map_location=network.device)
    except (RuntimeError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"FeatureSimilarity: {path} is no checkpoint of this family: {said}") from error
    return loaded.eval()


def _parts(calls: Sequence[Call], columns: int) -> Iterator[dict[str, slice]]:
    """Which columns of which features to hold at a time: at most so many in all, at least one."""
    part: dict[str, slice] = {}
    room = columns = max(1, columns)
    for call in calls:
        start, size = 0, torch.Size(call.output_shape or ()).numel()
        while start < size:
            taken = min(room, size - start)
            part[call.name] = slice(start, start + taken)
            start, room = start + taken, room - taken
            if room == 0:
                yield part
                part, room = {}, columns
    if part:
        yield part


def _features(network: nn.Module, calls: Sequence[Call], inputs: Tensor, part: dict[str, slice]) -> dict[str, Tensor]:
    """The asked-for columns of the flattened outputs of calls, (n, columns), float64."""

    def columns(name: str, output: Tensor) -> Tensor:
        return output.flatten(1)[:, part[name]].to(torch.float64, copy=True)

    asked = [call for call in calls if call.name in part]
    batches = [outputs_of(network, asked, batch, columns) for batch in torch.split(inputs, 64)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in part}
