"""TRADES inside a training loop of your own: any model, any optimiser."""

import torch
from torch import nn

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Streams
from robustssm.data.batches import batches, epoch_order
from robustssm.data.digits import Digits
from robustssm.evaluation.evaluate import evaluate
from robustssm.training.trades import Trades


def main(epochs: int = 3) -> float:
    """Trains a small network and returns its accuracy under PGD-10."""
    streams = Streams(0)
    splits = Digits().read(data_dir=None, noise=streams.noise("split"))
    threat = Threat(norm="linf", eps=0.1)
    objective = Trades(threat=threat, beta=3.0, attack=PGD(steps=3, loss="kl", start="normal"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    for epoch in range(epochs):
        order = epoch_order(len(splits.train), streams.noise("order", epoch))
        for batch in batches(splits.train, order=order, batch_size=64):
            noise = streams.examples("train", epoch, indices=batch.indices)
            for update in objective.updates(model, batch.x, batch.y, memory={}, noise=noise):
                update.loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    test = next(batches(splits.test, batch_size=len(splits.test)))
    attacks = [PGD(steps=10)]
    result = evaluate(
        model, test.x, test.y, attacks, threat=threat, streams=streams, batch_size=256
    )
    low, high = result.interval("pgd-10")
    print(f"clean {result.clean_accuracy:.3f}")
    print(f"PGD-10 {result.attacks['pgd-10']:.3f}, 95 % interval [{low:.3f}, {high:.3f}]")
    return result.attacks["pgd-10"]


if __name__ == "__main__":
    main()
