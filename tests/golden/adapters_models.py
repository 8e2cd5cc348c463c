"""Golden adapters of patch embeddings, encoders and masked autoencoders."""

from tests.golden.harness import Adapter

ADAPTERS: dict[tuple[str, str], Adapter] = {}
