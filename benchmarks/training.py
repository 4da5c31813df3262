"""What training costs: a step against its own matrix products, active genes against all, a search against none.

    python benchmarks/training.py                           # all rows, one thread, some minutes
    python benchmarks/training.py --genes 2000 --rounds 3 --rows step active

Both sides of a ratio take turns within one run; time is CPU time of the process, and a ratio is that of the least times
over rounds, with that of the medians behind it.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from agl_sc.core.config import GradientSearch, Method, Search, TrainConfig
from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.network.network import Network
from agl_sc.core.numerics.losses import linear_pearson_loss, weighted_mean
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.build import make_optimizer, make_problem
from agl_sc.core.training.epoch import batches_of, train_epoch
from agl_sc.core.training.fit import fit
from agl_sc.core.weighting import METHODS, Fixed

N_TARGETS, N_FEATURES, RANK, BATCH = 50, 1280, 64, 128
Work = Callable[[], object]


def keep_freed_memory() -> None:
    """glibc then keeps up to twice this freed memory for the next step, as after reading any data, on either side."""
    torch.empty(31 << 20, dtype=torch.uint8)


def seconds(sides: dict[str, Work], *, rounds: int, repeats: int) -> dict[str, list[float]]:
    """CPU time of every side and round, after once to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()
    for _ in range(rounds):
        for name, work in sides.items():
            start = time.process_time()
            for _ in range(repeats):
                work()
            taken[name].append((time.process_time() - start) / repeats)
    return taken


def print_ratio(title: str, sides: dict[str, Work], *, goal: float, rounds: int, repeats: int = 20) -> None:
    """Of the first side to the second."""
    taken = seconds(sides, rounds=rounds, repeats=repeats)
    (one, times), (other, floor) = taken.items()
    least, middle = (how(times) / how(floor) for how in (min, statistics.median))
    print(f"\n{title}\n  {one} / {other}: {least:.2f} (goal {goal}); {middle:.2f} by medians; ", end="")
    print(f"{1e3 * min(times):.1f} and {1e3 * min(floor):.1f} CPU ms")


def training_step(n_genes: int, weights: torch.Tensor) -> Work:
    """On the genes of weight above zero, as the package takes it."""
    torch.manual_seed(0)
    network, n_active = Network(N_FEATURES, n_genes, rank=RANK), int((weights > 0).sum())
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    features, expression = torch.randn(BATCH, N_FEATURES), torch.randn(BATCH, n_genes)

    def work() -> None:
        # Of all genes, no slice: its gradient would be copied into one more matrix.
        active = network.head.weight[:n_active] if n_active < n_genes else network.head.weight
        hidden, measured = network.trunk(features), expression[:, :n_active]
        losses = linear_pearson_loss(hidden, active, network.head.bias[:n_active], measured=measured)
        optimizer.zero_grad()
        weighted_mean(losses, weights[:n_active]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return work


def matrix_products(n_genes: int) -> Work:
    """Features through a linear trunk and head, and the gradient to both weights and to what is between them."""
    features = torch.randn(BATCH, N_FEATURES)
    trunk, head, along = (torch.randn(*shape) for shape in ((N_FEATURES, RANK), (RANK, n_genes), (BATCH, n_genes)))

    def work() -> None:
        hidden = features @ trunk
        hidden @ head
        hidden.T @ along
        features.T @ (along @ head.T)

    return work


def fit_seconds(method: Method, search: Search, data: tuple[Spots, Validation], *, n_epochs: int) -> float:
    """Of a whole fit: the closed form, a search where there is one, and the epochs."""
    at = GradientSearch(start_cutoff=0.2)
    config = TrainConfig(search=search, rank=RANK, max_epochs=n_epochs, patience=n_epochs + 1, gradient=at)
    start = time.process_time()
    fit(*data, n_targets=N_TARGETS, method=METHODS[method], config=config)
    return time.process_time() - start


def make_data(n_genes: int, *, n_spots: int = 1024, n_validation: int = 256) -> tuple[Spots, Validation]:
    generator = np.random.default_rng(0)
    n, kinds = n_spots + n_validation, generator.normal(size=(N_FEATURES, n_genes)) / 50
    features = generator.normal(size=(n, N_FEATURES))
    expression = features @ kinds + generator.normal(size=(n, n_genes))
    sections = np.zeros(n, dtype=np.int64)
    held_out = Validation(features[n_spots:], expression[n_spots:, :N_TARGETS], sections[n_spots:])
    return Spots(features[:n_spots], Expression.from_dense(expression[:n_spots]), sections[:n_spots]), held_out


def print_step(n_genes: int, rounds: int) -> None:
    sides = {"step": training_step(n_genes, torch.ones(n_genes)), "products": matrix_products(n_genes)}
    title = (
        f"Training step, {n_genes} genes, batch {BATCH}, to the two matrix products of trunk and head, there and back"
    )
    print_ratio(title, sides, goal=1.5, rounds=rounds)


def print_active(n_genes: int, rounds: int) -> None:
    data = make_data(n_genes)
    sides = {"dkgsb at 0.2": loop_epoch(data, "dkgsb", 0.2), "agl": loop_epoch(data, "agl", 1.0)}
    title = f"Epoch of the loop on active genes to one on all {n_genes}, {len(data[0].features)} spots"
    print_ratio(title, sides, goal=0.4, rounds=rounds)


def loop_epoch(data: tuple[Spots, Validation], method: Method, cutoff: float) -> Work:
    """An epoch of the package's own loop at a fixed cutoff."""
    spots, accelerator, config = data[0], Accelerator(cpu=True), TrainConfig(rank=RANK, start="random")
    n_genes = spots.expression.shape[1]
    start = LowRank(np.zeros((N_FEATURES, RANK)), np.zeros((RANK, n_genes)))
    problem = make_problem(
        *data, n_targets=N_TARGETS, start=start, config=config, state=None, sources=None, device=accelerator.device, seed=0
    )  # fmt: skip
    weights = METHODS[method].gene_weights(cutoff, n_targets=N_TARGETS, n_genes=n_genes, temperature=0.01)
    weighting, optimizer = Fixed(N_TARGETS, weights), make_optimizer(problem, [], config)
    stepper = AcceleratedOptimizer(optimizer, scaler=None)

    def work() -> None:
        drawn = torch.Generator().manual_seed(0)
        batches = batches_of(len(spots.features), BATCH, drawn)
        training = Bilevel(problem, optimizer, batches, drawn)
        train_epoch(training, weighting, stepper=stepper, accelerator=accelerator)

    return work


def print_epoch(n_genes: int, rounds: int, *, n_amortised: int = TrainConfig().max_epochs) -> None:
    """An epoch is a third of what three more of them take; the first of a gradient search does not search."""
    data = make_data(n_genes)
    least: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for name, (method, search) in FITS.items():
            for n_epochs in (0, 1, 4):
                taken = fit_seconds(method, search, data, n_epochs=n_epochs)
                least[name, n_epochs] = min(least.get((name, n_epochs), taken), taken)
    epoch = {name: (least[name, 4] - least[name, 1]) / 3 for name in FITS}
    once = least["path", 0] - least["agl", 0]
    spread = (once / n_amortised + epoch["path"]) / epoch["agl"]
    print(f"\nEpoch of dkgsb to one of agl, {n_genes} genes, {len(data[0].features)} spots (goal 1.3)")
    print(f"  cutoff learned by path once ({once:.2f} CPU s, spread over {n_amortised} epochs): {spread:.2f}")
    print(
        f"  cutoff learned by gradient in every epoch, nothing spread: {epoch['gradient'] / epoch['agl']:.2f}", end=""
    )
    print(f"; agl {epoch['agl']:.2f} CPU s")


FITS: dict[str, tuple[Method, Search]] = {
    "agl": ("agl", "path"),
    "path": ("dkgsb", "path"),
    "gradient": ("dkgsb", "gradient"),
}
ROWS: dict[str, Callable[[int, int], None]] = {
    "step": print_step,
    "active": print_active,
    "epoch": print_epoch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--genes", type=int, default=18_000)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_freed_memory()
    for row in given.rows:
        ROWS[row](given.genes, given.rounds)


if __name__ == "__main__":
    main()
