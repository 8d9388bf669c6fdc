"""The configuration: its schema (schema), and how it is read, overridden and hashed (load)."""

from maediff.config.load import config_hash, dump_yaml, load_config, maps_hash, override, parse_config, presets
from maediff.config.schema import (
    METHODS,
    UNTRAINED,
    BaselineConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    HeadsConfig,
    InferConfig,
    Method,
    ModelConfig,
    PartitionConfig,
    ScoreConfig,
    Section,
    TrainConfig,
)

__all__ = [
    "METHODS",
    "UNTRAINED",
    "BaselineConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "HeadsConfig",
    "InferConfig",
    "Method",
    "ModelConfig",
    "PartitionConfig",
    "ScoreConfig",
    "Section",
    "TrainConfig",
    "config_hash",
    "dump_yaml",
    "load_config",
    "maps_hash",
    "override",
    "parse_config",
    "presets",
]
