"""Train the small networks of the tests anew: ``python -m tests.data.make_networks``.

They ship as files, since what training makes of a seed depends on the processor's rounding.
"""

import torch
import torch.nn.functional as F

from datasets.loader import to_device, to_float
from models import create_model
from tests.helpers import CPU, DATA, DIGITS, tiny


def train(model, epochs, epsilon=0.0):
    """Naturally, or with single-step adversarial training at epsilon."""
    torch.manual_seed(0)
    pixels, labels = to_device(DIGITS.x_train, DIGITS.y_train, CPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            x, y = to_float(pixels[batch]), labels[batch]
            if epsilon:
                start = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
                x = (x + (start.detach() + epsilon * gradient.sign() - x).clamp(-epsilon, epsilon)).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def main():
    torch.manual_seed(0)
    networks = {
        "tiny-natural": train(tiny(), 10),
        "tiny-robust": train(tiny(), 15, epsilon=0.05),
        # started naturally: adversarial training from scratch ends in a constant at this epsilon
        "tiny-robust-0.1": train(train(tiny(), 5).requires_grad_(True), 10, epsilon=0.1),
    }
    torch.manual_seed(0)
    networks["wrn-10-1-natural"] = train(create_model("wrn-10-1", 10).train(), 4).half()
    for name, model in networks.items():
        torch.save(model.state_dict(), DATA / f"{name}.pt")


if __name__ == "__main__":
    main()
