"""How alike the representations of a network's stages are, to each other and to those of another run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.measures.similarity import cka_matrix
from lightning_depth.probes import AbstractSampleProbe, Picture, Schedule
from lightning_depth.probes.calls import INPUT, Call, outputs_of, stages
from lightning_depth.probes.samples import Split


@final
class FeatureSimilarity(AbstractSampleProbe):
    """Debiased linear CKA (Kornblith et al. 2019; Nguyen et al. 2021) of the representations of all stages.

    Independent representations read 0, whatever their size; the same ones up to rotation and scale read 1.

    Reads for each stage `input` (CKA with the input), `previous` (with the stage before) and, where there is a
    reference, `reference` (with the same stage of that network). Draws the whole matrix.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: the input and the stages (the trunk's children).
        split: `held_out` or `train`.
        samples: how many, at least 4.
        reference: a checkpoint of the same family, from another run or epoch.
        max_bytes: features that are held at a time. Where more are wanted, the samples go through the network several
            times, and a warning says so.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "held_out",
        samples: int = 256,
        reference: str | None = None,
        max_bytes: int = 2**29,
    ) -> None:
        super().__init__(every, layers, split, samples)
        if reference is not None and not Path(reference).is_file():
            raise UserError(f"FeatureSimilarity: there is no checkpoint {reference}.")
        self.reference = reference
        self.max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        self._matrix = self._across = torch.empty(0)

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        trunk = stages(calls)
        watched = self.watched(calls, lambda call: call.name == INPUT or call.name.split("#")[0] in trunk)
        self._sizes = {call.name: torch.Size(call.output_shape or ()).numel() for call in watched}
        return []

    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        if not self._sizes:
            return
        grams = self._grams(self.network, inputs)
        names, count = list(self._sizes), len(grams)
        if self.reference is not None:
            grams = torch.cat([grams, self._grams(self._referred(self.reference), inputs)])
        every = cka_matrix(grams)
        self._matrix, self._across = every[:count, :count], every[:count, count:]
        for place, name in enumerate(names):
            if INPUT in names:
                yield name, "input", float(self._matrix[place, names.index(INPUT)])
            if place > 0:
                yield name, "previous", float(self._matrix[place, place - 1])
            if self.reference is not None:
                yield name, "reference", float(self._across[place, place])

    def _referred(self, path: str) -> LightningModule:
        try:
            network = type(self.network).load_from_checkpoint(path, map_location=self.network.device)
        except (RuntimeError, TypeError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"FeatureSimilarity: {path} is no checkpoint of this family: {said}") from error
        return network.eval()

    def _grams(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """The Gram matrices of the centred features of all chosen calls, (layers, n, n), float64."""
        n = len(inputs)
        grams = {name: inputs.new_zeros(n, n, dtype=torch.float64) for name in self._sizes}
        parts = list(self._parts(self.max_bytes // (n * 8)))
        if len(parts) > 1:
            self.say_once(f"features exceed max_bytes: the samples go through the network {len(parts)} times.")
        for part in parts:
            for name, columns in _features(network, inputs, part).items():
                if not columns.isfinite().all():
                    raise ValueError(f"{name}: representations are not finite")
                centred = columns - columns.mean(0)
                grams[name] += centred @ centred.mT
        return torch.stack(list(grams.values()))

    def _parts(self, columns: int) -> Iterator[dict[str, slice]]:
        """Which columns of which features to hold at a time: at most so many in all, at least one."""
        part: dict[str, slice] = {}
        room = columns = max(1, columns)
        for name, size in self._sizes.items():
            start = 0
            while start < size:
                taken = min(room, size - start)
                part[name] = slice(start, start + taken)
                start, room = start + taken, room - taken
                if room == 0:
                    yield part
                    part, room = {}, columns
        if part:
            yield part

    def draw(self) -> Iterable[Picture]:
        names = list(self._sizes)
        if names:
            yield Picture("", "cka", self._matrix, names)
        if names and self.reference is not None:
            yield Picture("", "cka_reference", self._across, names)


def _features(network: nn.Module, inputs: Tensor, part: dict[str, slice]) -> dict[str, Tensor]:
    """The asked-for columns of the flattened outputs of calls, (n, columns), float64."""

    def columns(name: str, output: Tensor) -> Tensor:
        return output.flatten(1)[:, part[name]].to(torch.float64, copy=True)

    batches = [outputs_of(network, part, batch, columns) for batch in torch.split(inputs, 64)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in part}
