"""A deterministic procedural world: landscapes, their seasons, and what any registered sensor sees of them."""
