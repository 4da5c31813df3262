"""One pass over the training spots."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from agl_sc.core.config import MIN_BATCH
from agl_sc.core.network.bilevel import Bilevel, Problem
from agl_sc.core.training.parallel import PieceSums, average_gradients, backward, drawing_from, n_pieces, own_pieces
from agl_sc.core.weighting import Weighting


def train_epoch(
    training: Bilevel, weighting: Weighting, *, stepper: torch.optim.Optimizer, accelerator: Accelerator
) -> float:
    """One pass over the training spots, computing only genes of weight above zero; mean loss."""
    problem, losses = training.problem, []
    with narrowed(problem.network.head, training.optimizer, weighting.n_active):
        trained = [*(p for module in problem.parts().values() for p in module.parameters()), *weighting.trained()]
        for index in training.batches:
            problem.network.eval()
            weighting.before_update(training, index)
            problem.network.train()
            stepper.zero_grad(set_to_none=True)
            pieces = _sums_of_pieces(problem, index, randomness=training.randomness, accelerator=accelerator)
            loss = backward(pieces, lambda sums: weighting(problem.objective.losses(sums)), accelerator=accelerator)
            average_gradients(trained, accelerator)
            stepper.step()
            losses.append(loss)
    return float(torch.stack(losses).mean())


@contextmanager
def narrowed(head: nn.Linear, optimizer: torch.optim.Optimizer, n_genes: int) -> Iterator[None]:
    """Train the leading genes of a head alone, in the memory of the whole: the other rows and their moments stay as they are."""
    if n_genes == head.out_features:
        yield
        return
    whole = dict(head.named_parameters())
    narrow = {
        name: nn.Parameter(parameter.detach()[:n_genes], parameter.requires_grad) for name, parameter in whole.items()
    }
    moments = {name: optimizer.state[parameter] for name, parameter in whole.items()}
    _exchange(head, optimizer, narrow)
    for name, parameter in narrow.items():
        optimizer.state[parameter] = {k: v[:n_genes] if v.ndim else v for k, v in moments[name].items()}
    try:
        yield
    finally:
        _exchange(head, optimizer, whole)
        for parameter in narrow.values():
            del optimizer.state[parameter]


def _exchange(head: nn.Linear, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        old = getattr(head, name)
        setattr(head, name, parameter)
        for group in optimizer.param_groups:
            group["params"] = [parameter if one is old else one for one in group["params"]]


def _sums_of_pieces(
    problem: Problem, index: torch.Tensor, *, randomness: torch.Generator, accelerator: Accelerator
) -> list[PieceSums]:
    """Sums over the spots of every piece of a batch that falls to this process."""
    present = torch.unique(problem.sections[index.to(problem.device)])
    head = problem.network.head
    seeds = torch.randint(2**31, (n_pieces(accelerator),), generator=randomness).tolist()

    def sums(part: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
        with accelerator.autocast():
            batch = problem.batch(part, len(head.weight), randomness=drawn, present=present)
            hidden = problem.network.trunk(batch.inputs)
            return problem.objective.parts(hidden, head.weight, head.bias, batch=batch)

    first = accelerator.process_index * accelerator.gradient_accumulation_steps
    own = own_pieces(index, accelerator)
    return [drawing_from(seeds[first + i], partial(sums, part), problem.device) for i, part in enumerate(own)]


def batches_of(n_spots: int, size: int, randomness: torch.Generator) -> list[torch.Tensor]:
    """Spots in random order, (n,) a batch; a small last batch is left out."""
    order = torch.randperm(n_spots, generator=randomness)
    return [index for index in torch.split(order, size) if len(index) >= min(MIN_BATCH, n_spots)]
