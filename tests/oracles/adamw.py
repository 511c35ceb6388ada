"""The AdamW of transformers 4, a weight at a time, as slowly as it reads; shares no code with the package."""

import torch


class LiteralAdamw:
    """Adam whose epsilon is added to the root of the moment as it is, and whose decay follows the step."""

    def __init__(self, weights, lr, eps, weight_decay=0.0):
        self.weights, self.lr, self.eps, self.weight_decay = list(weights), lr, eps, weight_decay
        self.count, self.m, self.v = 0, {}, {}

    @torch.no_grad()
    def step(self):
        self.count += 1
        for number, theta in enumerate(self.weights):
            if theta.grad is None:
                continue
            self.m[number] = 0.9 * self.m.get(number, 0) + 0.1 * theta.grad
            self.v[number] = 0.999 * self.v.get(number, 0) + 0.001 * theta.grad**2
            rate = self.lr * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
            theta.sub_(rate * self.m[number] / (self.v[number].sqrt() + self.eps))
            if theta.ndim > 1:
                theta.sub_(self.lr * self.weight_decay * theta)
