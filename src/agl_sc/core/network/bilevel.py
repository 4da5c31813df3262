"""What is fitted to what: spots, choices, and network, inputs, measurements and losses on one device."""

from dataclasses import dataclass, field

import numpy as np
import torch

from agl_sc.core.network.network import Network
from agl_sc.core.network.objective import Batch, Objective
from agl_sc.core.network.sources import InputSource
from agl_sc.core.numerics.tensors import Parameters, Tensors, part
from agl_sc.core.spots.counts import Counts, in_log_units
from agl_sc.core.spots.expression import ExpressionBatches
from agl_sc.core.spots.spots import Validation


@dataclass(frozen=True, slots=True)
class Problem:
    """What is fitted to what, on one device."""

    network: Network
    """Trunk and head."""
    source: InputSource
    """Inputs of the training spots."""
    expression: ExpressionBatches
    """Of the training spots, (n_spots, n_genes)."""
    sections: torch.Tensor
    """Section of every training spot, (n_spots,)."""
    objective: Objective
    """Losses per gene."""
    counts: Counts | None
    """Of the training spots, for a likelihood."""
    base: torch.Tensor | None
    """Log of the mean normalised count of every gene, (n_genes,), for a likelihood."""
    validation_source: InputSource | None
    """Inputs of the validation spots."""
    validation: Validation | None
    """Measured targets of the validation spots."""
    n_targets: int
    """Number of leading genes that are targets."""

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.expression.device

    @property
    def n_genes(self) -> int:
        """Targets and auxiliary genes."""
        return self.network.head.out_features

    def parts(self) -> dict[str, torch.nn.Module]:
        """Everything that is trained."""
        encoder = self.source.encoder
        return {"network": self.network} if encoder is None else {"network": self.network, "encoder": encoder}

    def state(self) -> Parameters:
        """Copy of all parameters and buffers, on the CPU."""
        parts = self.parts().items()
        return {
            f"{part}.{k}": v.detach().cpu().clone() for part, module in parts for k, v in module.state_dict().items()
        }

    def load(self, state: Tensors) -> None:
        """Take over what :meth:`state` copied."""
        for name, module in self.parts().items():
            module.load_state_dict(part(state, f"{name}."))

    def batch(
        self, index: torch.Tensor, n_genes: int, *, randomness: torch.Generator, present: torch.Tensor | None = None
    ) -> Batch:
        """Training spots ``index``, (n,), with their leading genes; a piece of a batch in which ``present`` sections occur."""
        inputs = self.source.inputs(index, randomness)
        here = index.to(self.device)
        sections = self.sections[here]
        present = torch.unique(sections) if present is None else present
        if self.counts is None:
            return Batch(inputs, self.expression.batch(index, n_genes), sections, present, inputs.new_zeros(0))
        measured = self.counts.batch(index, n_genes).to(self.device)
        library = torch.from_numpy(np.log(self.counts.library[index.cpu().numpy()]).astype(np.float32))
        return Batch(inputs, measured, sections, present, library.to(self.device))

    def score(self) -> float:
        """Mean validation Pearson of the targets; NaN without validation spots."""
        if self.validation is None or self.validation_source is None:
            return float("nan")
        self.network.eval()
        with torch.inference_mode():
            batches = self.validation_source.all_inputs()
            raw = torch.cat([self.network(inputs, self.n_targets) for inputs in batches]).float()
            predicted = raw if self.base is None else in_log_units(raw, self.base)
        return self.validation.score(predicted.cpu().double().numpy())


@dataclass(slots=True)
class Bilevel:
    """A training under way, as a weighting sees it: losses at any parameters; looking changes nothing."""

    problem: Problem
    """What is fitted."""
    optimizer: torch.optim.Optimizer
    """Of the network."""
    batches: list[torch.Tensor]
    """Training spots by batch, in random order."""
    randomness: torch.Generator
    """For whatever is drawn."""
    _held_out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    @property
    def lr(self) -> float:
        """Learning rate of the network."""
        return float(self.optimizer.param_groups[0]["lr"])

    def parameters(self, n_genes: int) -> Parameters:
        """Of trunk and head, the head cut to its leading genes; not copied."""
        return leading({name: value.detach() for name, value in self.problem.network.named_parameters()}, n_genes)

    def batch(self, index: torch.Tensor, n_genes: int) -> Batch:
        """Training spots with the present inputs, out of the graph."""
        with torch.no_grad():
            return self.problem.batch(index, n_genes, randomness=self.randomness)

    def losses(self, at: Parameters, batch: Batch) -> torch.Tensor:
        """Training losses of all genes in the head, (n_genes,), without dropout."""
        hidden = self.problem.network.hidden_at(at, batch.inputs)
        return self.problem.objective.of_batch(hidden, at["head.weight"], at["head.bias"], batch=batch)

    def validation_loss(self, at: Parameters, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of 1 - Pearson of the targets over validation spots, all or some ``rows``."""
        if self._held_out is None:
            self._held_out = self._look_up()
        inputs, measured, sections = self._held_out if rows is None else tuple(t[rows] for t in self._held_out)
        n_targets = measured.shape[1]
        hidden = self.problem.network.hidden_at(at, inputs)
        batch = Batch(inputs, measured, sections, torch.unique(sections), inputs.new_zeros(0))
        predicted = torch.nn.functional.linear(hidden, at["head.weight"][:n_targets], at["head.bias"][:n_targets])
        if self.problem.base is not None:
            predicted = in_log_units(predicted, self.problem.base)
        pearson = Objective("pearson", None, inputs.new_zeros(0), inputs.new_zeros(0))
        return pearson.losses(pearson.parts_of(predicted, batch)[None]).mean()

    @property
    def n_validation(self) -> int:
        """Number of validation spots; 0 without."""
        return 0 if self.problem.validation is None else len(self.problem.validation.targets)

    def _look_up(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.problem.validation is None or self.problem.validation_source is None:
            msg = "There are no validation spots, and this method learns from them; pass validation spots."
            raise ValueError(msg)
        device = self.problem.device
        measured = torch.from_numpy(self.problem.validation.targets.astype(np.float32)).to(device)
        sections = torch.from_numpy(self.problem.validation.sections).to(device)
        with torch.no_grad():
            return torch.cat(list(self.problem.validation_source.all_inputs())).detach(), measured, sections


def leading(values: Parameters, n_genes: int) -> Parameters:
    """Parameters, or moments, with the head cut to the leading genes."""
    return {name: value[:n_genes] if name.startswith("head.") else value for name, value in values.items()}
