"""Knows how images become clients and clients become few-shot tasks; knows nothing of models or learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fl_core.folders import folders
from fl_core.glyphs import glyphs
from fl_core.images import Images, digits
from fl_core.omniglot import omniglot
from fl_core.options import DataOptions
from fl_core.seeds import generator


class Batch(NamedTuple):
    """Images in 0..1 and their labels within the task (0 .. ways-1). More leading axes when batches are stacked."""

    x: Float[Tensor, "... b channel row column"]
    y: Int[Tensor, "... b"]


class Task(NamedTuple):
    """One few-shot task: batches B (support), B' (query, disjoint from support), B'' (Hessian, drawn independently)."""

    support: Batch
    query: Batch
    hessian: Batch

    def map(self, function: Callable[[Tensor], Tensor]) -> Task:
        """Apply a function to every tensor; a Hessian batch that *is* the support set stays so."""
        support, query = (Batch(function(batch.x), function(batch.y)) for batch in self[:2])
        if self.hessian is self.support:
            return Task(support, query, support)
        return Task(support, query, Batch(function(self.hessian.x), function(self.hessian.y)))

    def at(self, place: int | slice | tuple[slice, int]) -> Task:
        """Take a part of every tensor by its leading axes."""
        return self.map(lambda tensor: tensor[place])


@dataclass(frozen=True)
class Category:
    """One class: the rows of its examples, and the quarter turns that make it a class of its own."""

    name: str
    group: str
    rows: Int[Tensor, " example"]
    turns: int = 0


@dataclass(frozen=True)
class Dataset:
    """All images, the classes cut from them, and which classes are for training and which for new clients."""

    images: Shaped[Tensor, "n channel row column"]
    categories: tuple[Category, ...]
    train_classes: tuple[int, ...]
    new_classes: tuple[int, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class ClientData:
    """One client's share: indices of its classes, and those classes with the client's own examples only."""

    images: Shaped[Tensor, "n channel row column"]
    classes: tuple[int, ...]
    categories: tuple[Category, ...]


def load(options: DataOptions, seed: int) -> Dataset:
    """Load the data set that ``options`` names, and split its classes between training and new clients.

    All rotations of a class, and all classes of a group (an alphabet; the digits 6 and 9), fall on the same side.

    Raises:
        ValueError: the data are missing or unreadable, or one side would have no class.
    """
    source = _source(options, seed)
    held_out = source.held_out or _held_out(source, options, seed)
    turns = 4 if options.rotations and options.name in ("digits", "omniglot") else 1
    order = torch.argsort(source.labels, stable=True)
    rows = torch.split(order, torch.bincount(source.labels, minlength=len(source.names)).tolist())
    categories = tuple(
        Category(f"{name} turned {90 * turn}" if turn else name, group, rows[label], turn)
        for label, (name, group) in enumerate(zip(source.names, source.groups, strict=True))
        for turn in range(turns)
    )
    new = tuple(index for index, category in enumerate(categories) if category.group in held_out)
    train = tuple(index for index, category in enumerate(categories) if category.group not in held_out)
    if not new or not train:
        raise ValueError(
            f"{options.name} would give {len(train)} training classes and {len(new)} new ones; both sides need some: "
            f"change new_fraction={options.new_fraction} or the contents of the data folder"
        )
    return Dataset(source.images, categories, train, new)


def split_clients(dataset: Dataset, options: DataOptions, seed: int) -> list[ClientData]:
    """Give every training client ``classes_per_client`` classes, and its share of their examples.

    Classes are dealt evenly: no class has two holders more than another. The examples of a class are split between
    its holders at random, or shared by all with ``examples="shared"``.

    Raises:
        ValueError: more classes per client than there are, or too few examples for ``shots + queries``.
    """
    available, wanted = len(dataset.train_classes), options.classes_per_client
    if wanted > available:
        raise ValueError(
            f"classes_per_client={wanted} exceeds the {available} training classes of {options.name}; "
            f"set classes_per_client to at most {available}"
        )
    rng = generator(seed, "split")
    holders: list[list[int]] = [[] for _ in dataset.categories]
    for client in range(options.clients):
        load_of = torch.tensor([float(len(holders[index])) for index in dataset.train_classes])
        ranking = torch.argsort(load_of + torch.rand(available, generator=rng))  # even first, ties at random
        for position in ranking[:wanted].tolist():
            holders[dataset.train_classes[position]].append(client)
    owned: list[dict[int, Category]] = [{} for _ in range(options.clients)]
    for index in dataset.train_classes:
        category, count = dataset.categories[index], len(holders[index])
        shuffled = category.rows[torch.randperm(len(category.rows), generator=rng)]
        for part, client in enumerate(holders[index]):
            rows = shuffled if options.examples == "shared" else shuffled[part::count]
            owned[client][index] = replace(category, rows=rows)
    return [_client(dataset, classes, options) for classes in owned]


def new_clients(dataset: Dataset, options: DataOptions, seed: int) -> list[ClientData]:
    """Make clients whose classes never occur in training; each holds ``classes_per_client`` of them, or all there are.

    Raises:
        ValueError: fewer new classes than ``ways``, or too few examples for ``shots + queries``.
    """
    available = len(dataset.new_classes)
    if available < options.ways:
        raise ValueError(
            f"{options.name} keeps {available} classes for new clients, fewer than ways={options.ways}; "
            "raise new_fraction or lower ways"
        )
    rng = generator(seed, "new clients")
    clients = []
    for _ in range(options.new_clients):
        chosen = torch.randperm(available, generator=rng)[: options.classes_per_client].tolist()
        indices = sorted(dataset.new_classes[position] for position in chosen)
        clients.append(_client(dataset, {index: dataset.categories[index] for index in indices}, options))
    return clients


def sample_task(client: ClientData, options: DataOptions, rng: torch.Generator) -> Task:
    """Draw a task: ``ways`` of the client's classes in random order, relabelled 0 .. ways-1.

    Support and query are disjoint; the Hessian batch is an independent draw from all the client's examples.

    Args:
        client: whose classes and examples.
        options: ways, shots, queries, hessian_shots.
        rng: the only source of randomness.

    Returns:
        Batches of ways*shots, ways*queries and ways*hessian_shots examples, ordered by label.
    """
    chosen = torch.randperm(len(client.categories), generator=rng)[: options.ways].tolist()
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for category in (client.categories[position] for position in chosen):
        rows, held = category.rows, len(category.rows)
        mixed = rows[torch.randperm(held, generator=rng)[: options.shots + options.queries]]
        again = rows[torch.randperm(held, generator=rng)[: options.hessian_shots]]
        for part, picked in zip(parts, (mixed[: options.shots], mixed[options.shots :], again), strict=True):
            part.append(_images(client, category, picked))
    return Task(*(_batch(part) for part in parts))


def sample_tasks(client: ClientData, options: DataOptions, rng: torch.Generator, count: int) -> Task:
    """Draw ``count`` tasks of one client, stacked: what ``maml.local_update`` takes for Q = ``count`` steps."""
    return stack([sample_task(client, options, rng) for _ in range(count)])


def evaluation_tasks(clients: list[ClientData], options: DataOptions, seed: int) -> Task:
    """Draw the ``new_tasks`` fixed evaluation tasks, shared out evenly over ``clients``; one leading axis, the task."""
    return stack(
        [
            sample_task(clients[index % len(clients)], options, generator(seed, "evaluation", index))
            for index in range(options.new_tasks)
        ]
    )


def full_tasks(clients: list[ClientData], options: DataOptions, seed: int) -> Task:
    """Cut all examples of all clients into fixed tasks: the full support and query sets D^tr and D^va.

    Each client's classes, shuffled once, are dealt into tasks of ``ways`` classes that together hold every class; half
    of each class's examples are support (and Hessian batch), half query. So that tasks stack, every class gives as many
    examples as the poorest class of any client.

    Returns:
        A task with leading axes (client, task).
    """
    half = min(len(category.rows) for client in clients for category in client.categories) // 2
    stacked = []
    for number, client in enumerate(clients):
        rng = generator(seed, "full", number)
        held = len(client.categories)
        order = torch.randperm(held, generator=rng).tolist()
        mixed = [c.rows[torch.randperm(len(c.rows), generator=rng)[: 2 * half]] for c in client.categories]
        tasks = []
        for first in range(0, held, options.ways):
            # The last task may borrow classes from the first.
            chosen = [order[(first + way) % held] for way in range(options.ways)]
            support, query = (
                _batch([_images(client, client.categories[c], mixed[c][part]) for c in chosen])
                for part in (slice(None, half), slice(half, None))
            )
            tasks.append(Task(support, query, support))
        stacked.append(stack(tasks))
    return stack(stacked)


def stack(tasks: list[Task]) -> Task:
    """Stack tasks of equal shapes along a new leading axis."""
    return Task(
        *(
            Batch(torch.stack([batch.x for batch in batches]), torch.stack([batch.y for batch in batches]))
            for batches in zip(*tasks, strict=True)
        )
    )


def moved(task: Task, device: str) -> Task:
    """Copy a task to a torch device; on the device it already has, it is the same task."""
    return task.map(lambda tensor: tensor.to(device))


def _source(options: DataOptions, seed: int) -> Images:
    if options.name == "digits":
        return digits()
    if options.name == "glyphs":
        return glyphs(seed, options.examples_per_class)
    if options.folder is None:
        holds = {
            "omniglot": "images_background.zip and images_evaluation.zip (or the two folders unpacked)",
            "folders": "one folder of images per class",
        }[options.name]
        raise ValueError(
            f"data.name is {options.name} and data.folder is unset; set data.folder to the folder that holds {holds}"
        )
    folder = options.folder.expanduser()
    if options.name == "omniglot":
        return omniglot(folder)
    return folders(folder, options.image_size, options.colour, options.examples_per_class)


def _held_out(source: Images, options: DataOptions, seed: int) -> frozenset[str]:
    """Choose groups for new clients: in random order, while the base classes stay within ``new_fraction``."""
    groups = sorted(set(source.groups))
    rng = generator(seed, "held out")
    budget = round(options.new_fraction * len(source.names))
    chosen: set[str] = set()
    for position in torch.randperm(len(groups), generator=rng).tolist():
        size = source.groups.count(groups[position])
        if size <= budget:
            chosen.add(groups[position])
            budget -= size
    return frozenset(chosen)


def _client(dataset: Dataset, owned: dict[int, Category], options: DataOptions) -> ClientData:
    needed = max(options.shots + options.queries, options.hessian_shots)
    for category in owned.values():
        if len(category.rows) < needed:
            raise ValueError(
                f"class {category.name!r} has {len(category.rows)} examples at one client, a task takes {needed} "
                f"(shots={options.shots} + queries={options.queries}, hessian_shots={options.hessian_shots}); "
                'lower these, lower clients or classes_per_client, or set examples="shared"'
            )
    return ClientData(dataset.images, tuple(owned), tuple(owned.values()))


def _images(client: ClientData, category: Category, rows: Tensor) -> Tensor:
    picked = client.images[rows]
    if picked.dtype == torch.uint8:
        picked = picked.float() / 255.0
    return torch.rot90(picked, category.turns, (2, 3)) if category.turns else picked


def _batch(parts: list[Tensor]) -> Batch:
    counts = torch.tensor([len(part) for part in parts])
    return Batch(torch.cat(parts), torch.arange(len(parts)).repeat_interleave(counts))
