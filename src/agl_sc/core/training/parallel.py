"""One batch in pieces, on one process or many: the gradient is that of the whole batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

T = TypeVar("T")

PieceSums = Callable[[], torch.Tensor]
"""Sums over the spots of a piece of a batch; the same whenever it is called."""


def n_pieces(accelerator: Accelerator) -> int:
    """Pieces that a batch is cut into: accumulated steps times processes."""
    return int(accelerator.gradient_accumulation_steps * accelerator.num_processes)


def own_pieces(index: torch.Tensor, accelerator: Accelerator) -> list[torch.Tensor]:
    """The pieces of a batch of spots, (n,), that fall to this process."""
    pieces = torch.tensor_split(index, n_pieces(accelerator))
    n_own = accelerator.gradient_accumulation_steps
    return list(pieces[accelerator.process_index * n_own :][:n_own])


def backward(
    pieces: Sequence[PieceSums], loss_of: Callable[[torch.Tensor], torch.Tensor], *, accelerator: Accelerator
) -> torch.Tensor:
    """Add the gradient of a batch's loss to the parameters, holding the graph of one piece at a time; the loss.

    A loss such as Pearson is no mean over spots, so that gradients of pieces do not add up to that of the batch. The sums
    it is made of do: a first pass makes those of all pieces and shares them among processes, and a second one
    differentiates every piece, the others held constant. With one piece in all there is no first pass.

    Parameters
    ----------
    pieces
        Of this process; as many as ``accelerator.gradient_accumulation_steps``, on every process.
    loss_of
        From the sums of all pieces, (n_pieces, ...), to the loss.
    accelerator
        Divides by the number of accumulated steps, and scales where the precision asks for it. Gradients are still those
        of one process: :func:`average_gradients` follows.
    """
    n = n_pieces(accelerator)
    if n == 1:
        loss = loss_of(pieces[0]()[None])
        accelerator.backward(loss)
        return loss.detach()
    kept = [pieces[0]()] if len(pieces) == 1 else []
    with torch.no_grad():
        own = torch.stack([piece.detach() for piece in kept] or [piece() for piece in pieces])
        sums = accelerator.gather(own)
    first = accelerator.process_index * len(pieces)
    for i, piece in enumerate(pieces):
        mine = kept[i] if kept else piece()
        # Accumulating and averaging divide by the number of pieces.
        mine.register_hook(lambda gradient: gradient * n)  # type: ignore[no-untyped-call]
        loss = loss_of(torch.cat([sums[: first + i], mine[None], sums[first + i + 1 :]]))
        accelerator.backward(loss)
    return loss.detach()


def average_gradients(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Replace gradients by their means over processes."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]), reduction="mean")
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def take_over(module: torch.nn.Module, accelerator: Accelerator) -> None:
    """Overwrite parameters and buffers by those of the main process."""
    if accelerator.num_processes > 1:
        for value in module.state_dict().values():
            value.copy_(broadcast(value))


def of_main(value: T, accelerator: Accelerator) -> T:
    """What the main process has; anything that can be pickled."""
    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


def from_main(make: Callable[[], T], accelerator: Accelerator) -> T:
    """What the main process makes, alone, of files that it also writes; where it refuses, every process does."""
    refused: ValueError | None = None
    value = None
    if accelerator.is_main_process:
        try:
            value = make()
        except ValueError as error:
            refused = error
    value, refused = of_main((value, refused), accelerator)
    if refused is not None:
        raise refused
    return cast("T", value)


@contextmanager
def forked_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators, that of the device included, as they are."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        yield


def drawing_from(seed: int, make: Callable[[torch.Generator], torch.Tensor], device: torch.device) -> PieceSums:
    """A piece whose random draws, dropout and augmentation, all follow from a seed."""

    def piece() -> torch.Tensor:
        with forked_randomness(device):
            torch.manual_seed(seed)
            return make(torch.Generator().manual_seed(seed))

    return piece
