"""Tasks that train a decoder on an encoder's feature maps."""
