"""The methods that Reptile is compared with, each with the same `step(batch)`: fine-tuning and plain distillation."""

from __future__ import annotations
