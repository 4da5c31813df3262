"""One pass over the training spots."""

from functools import partial

import torch
from accelerate import Accelerator

from agl_sc.core.config import MIN_BATCH
from agl_sc.core.parallel import Piece, average_gradients, backward, drawing_from, n_pieces, own_pieces
from agl_sc.core.problem import Bilevel, Problem
from agl_sc.core.weighting import Weighting


def train_epoch(
    training: Bilevel, weighting: Weighting, *, stepper: torch.optim.Optimizer, accelerator: Accelerator
) -> float:
    """One pass over the training spots, computing only genes of weight above zero; mean loss."""
    problem, losses = training.problem, []
    trained = [*(p for module in problem.parts().values() for p in module.parameters()), *weighting.trained()]
    for index in training.batches:
        problem.network.eval()
        weighting.before_update(training, index)
        problem.network.train()
        stepper.zero_grad(set_to_none=True)
        pieces = _pieces(problem, index, weighting.n_active, randomness=training.randomness, accelerator=accelerator)
        losses.append(backward(pieces, lambda sums: weighting(problem.objective.losses(sums)), accelerator=accelerator))
        average_gradients(trained, accelerator)
        stepper.step()
    return float(torch.stack(losses).mean())


def _pieces(
    problem: Problem, index: torch.Tensor, n_genes: int, *, randomness: torch.Generator, accelerator: Accelerator
) -> list[Piece]:
    """Sums over the spots of every piece of a batch that falls to this process."""
    present = torch.unique(problem.sections[index.to(problem.device)])
    head = problem.network.head
    seeds = torch.randint(2**31, (n_pieces(accelerator),), generator=randomness).tolist()

    def sums(part: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
        with accelerator.autocast():
            batch = problem.batch(part, n_genes, randomness=drawn, present=present)
            hidden = problem.network.trunk(batch.inputs)
            return problem.objective.parts(hidden, head.weight[:n_genes], head.bias[:n_genes], batch=batch)

    first = accelerator.process_index * accelerator.gradient_accumulation_steps
    own = own_pieces(index, accelerator)
    return [drawing_from(seeds[first + i], partial(sums, part), problem.device) for i, part in enumerate(own)]


def batches_of(n_spots: int, size: int, randomness: torch.Generator) -> list[torch.Tensor]:
    """Spots in random order, (n,) a batch; a small last batch is left out."""
    order = torch.randperm(n_spots, generator=randomness)
    return [index for index in torch.split(order, size) if len(index) >= min(MIN_BATCH, n_spots)]
