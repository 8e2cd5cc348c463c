"""EO-SSL: self-supervised pretraining for any optical or SAR sensor, derived from DINOv2."""

__version__ = "0.1.0"
