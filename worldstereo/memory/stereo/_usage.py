"""Which entries are used, which are worth keeping, and which make room."""

import torch
from torch import Tensor

from worldstereo.memory.stereo._bank import Bank

STRATEGIES = ("fifo", "lru", "importance_based")
HALF_LIFE = 256
"""Uses of the memory after which an entry that was not used itself counts half (recency)."""


def importance(bank: Bank) -> Tensor:
    """(size,): mean confidence x (1 + attention received) x recency."""
    age = (bank.scalars.clock - bank.column("last_used")).float()
    mean = bank.column("confidence").mean(dim=1)
    return mean * (1 + bank.column("received")) * torch.exp2(-age / HALF_LIFE)


def places(bank: Bank, count: int, strategy: str) -> Tensor:
    """Slots for `count` new entries: free ones first, then those that the strategy gives up.

    Ties go against the oldest entry. Linear in the size of the bank.
    """
    free = min(count, bank.capacity - bank.size)
    slots = torch.arange(bank.size, bank.size + free, device=bank.device)
    if free == count:
        return slots
    order = bank.column("order")
    ranks = {"fifo": "order", "lru": "last_used"}
    rank = bank.column(ranks[strategy]) if strategy in ranks else importance(bank)
    worst = rank.kthvalue(count - free).values
    sure = (rank < worst).nonzero()[:, 0]
    tied = (rank == worst).nonzero()[:, 0]
    oldest = order[tied].topk(count - free - len(sure), largest=False).indices
    victims = torch.cat([sure, tied[oldest]])
    victims = victims[torch.argsort(order[victims])]
    victims = victims[torch.argsort(rank[victims], stable=True)]
    return torch.cat([slots, victims])


def remove(bank: Bank, slots: Tensor) -> None:
    """Removes entries; the last ones move into the gaps."""
    if len(slots) == 0:
        return
    left = bank.size - len(slots)
    gone = torch.zeros(bank.size, dtype=torch.bool, device=bank.device)
    gone[slots] = True
    gaps = gone[:left].nonzero()[:, 0]
    movers = left + (~gone[left:]).nonzero()[:, 0]
    bank.write(gaps, **{name: column[movers] for name, column in bank.columns.items()})
    bank.set(size=left)


def count_use(bank: Bank, slots: Tensor, attention: Tensor | None, found: int, asked: int) -> None:
    """Counts a call: which entries were used, how strongly, how many queries found one."""
    scalars = bank.scalars
    clock = scalars.clock + 1
    used = torch.zeros(bank.size, dtype=torch.bool, device=bank.device)
    used[slots] = True
    touched = used.nonzero()[:, 0]
    now = torch.full_like(touched, clock)
    if attention is None:
        bank.write(touched, last_used=now)
    else:
        received = torch.zeros(bank.size, device=bank.device).index_add(0, slots, attention)
        total = bank.columns["received"][touched] + received[touched]
        bank.write(touched, last_used=now, received=total)
    bank.set(clock=clock, found=scalars.found + found, asked=scalars.asked + asked)
