"""Typed configs read from YAML, checked, with errors of one line.

`schema` has what may be asked, `fields` what its fields are made of, `folders` and `yaml_files`
find and read files, and `layers` turns a file, `--set` and flags into one checked value.
"""

from typing import TYPE_CHECKING

from jspec.config.fields import (
    MAX_SEED,
    MAX_TOKENS,
    Config,
    count,
    digest_field,
    field,
    required,
    seed_field,
)
from jspec.config.folders import config_folders, config_names, find_config, runnable_names
from jspec.config.layers import Layer, parse_mesh, parse_sets, parse_text, resolve
from jspec.config.schema import (
    ROUNDS_PER_CHUNK,
    DrafterConfig,
    Filters,
    InferConfig,
    LineConfig,
    MeshConfig,
    Settings,
    TargetConfig,
    drafters_of,
)
from jspec.config.yaml_files import read_yaml
from jspec.lazy import submodules

__all__ = [
    "MAX_SEED",
    "MAX_TOKENS",
    "ROUNDS_PER_CHUNK",
    "Config",
    "DrafterConfig",
    "Filters",
    "InferConfig",
    "Layer",
    "LineConfig",
    "MeshConfig",
    "Settings",
    "TargetConfig",
    "config_folders",
    "config_names",
    "count",
    "digest_field",
    "drafters_of",
    "field",
    "find_config",
    "parse_mesh",
    "parse_sets",
    "parse_text",
    "read_yaml",
    "required",
    "resolve",
    "runnable_names",
    "seed_field",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
