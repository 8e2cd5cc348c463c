from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING, OmegaConf

from dinov2 import config


@dataclass
class Inner:
    rate: float = 0.1
    steps: int = 10
    pair: tuple[float, float] = (0.1, 0.2)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    path: str = MISSING


def merge(*layers):
    return config.merge(Outer, *[OmegaConf.create(layer) for layer in layers], origin="a.yaml")


def test_later_layers_win_and_defaults_stay():
    merged = merge({"path": "x", "inner": {"rate": 0.5}}, {"inner": {"rate": 0.7}})
    assert (merged.inner.rate, merged.inner.steps, merged.path) == (0.7, 10, "x")


def test_unknown_key_names_file_key_and_neighbour():
    with pytest.raises(ValueError, match=r"a\.yaml: .*rat.*[Dd]id you mean.*rate"):
        merge({"path": "x", "inner": {"rat": 1}})


def test_wrong_type_names_the_key():
    with pytest.raises(ValueError, match=r"inner\.rate"):
        merge({"path": "x", "inner": {"rate": "fast"}})


def test_whole_numbers_get_a_sentence():
    with pytest.raises(ValueError, match=r"inner\.steps.*write a whole number"):
        merge({"path": "x", "inner": {"steps": 1e-3}})


def test_missing_key_is_named():
    with pytest.raises(ValueError, match=r"path must be given"):
        merge({})


def test_override_without_equals_sign():
    with pytest.raises(ValueError, match="neither an option nor key=value"):
        config.read_overrides(["lr"])


def test_not_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"bad\.yaml is not valid YAML"):
        config.read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping"):
        config.read_yaml(path)
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        config.read_yaml(tmp_path / "none.yaml")


def test_signature_schema_takes_keyword_only_arguments():
    def build(encoder: object, *, size: int = 3, scale: tuple[float, float] = (0.1, 1.0)) -> None: ...

    schema = OmegaConf.structured(config.signature_schema("build", build))
    assert dict(schema) == {"size": 3, "scale": [0.1, 1.0]} or tuple(schema.scale) == (0.1, 1.0)


def test_fingerprint_ignores_the_order_of_keys_only():
    assert config.fingerprint({"a": 1, "b": 2}) == config.fingerprint({"b": 2, "a": 1})
    assert config.fingerprint({"a": 1}) != config.fingerprint({"a": 2})
