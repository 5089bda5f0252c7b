"""Every setting of the probe: its unit, default, bounds and validation, and how it is read."""

from vllm_nfp.config.bounds import (
    MAX_POSITIONS_LIMIT,
    MOST_BATCH_SIZES,
    MOST_CONTEXTS,
    MOST_EPSILONS,
    MOST_POINTS,
    MOST_POSITION_COUNTS,
    ConfigError,
)
from vllm_nfp.config.graph_limits import GraphLimits
from vllm_nfp.config.reading import (
    INTERNAL_FIELDS,
    check_writable_folder,
    config_from_environment,
    config_from_json,
    config_from_mapping,
    parse_object,
    read_settings_argument,
)
from vllm_nfp.config.settings import DEFAULT_POSITIONS, ProbeConfig
from vllm_nfp.env_var import ENV_VAR

__all__ = [
    "DEFAULT_POSITIONS",
    "ENV_VAR",
    "INTERNAL_FIELDS",
    "MAX_POSITIONS_LIMIT",
    "MOST_BATCH_SIZES",
    "MOST_CONTEXTS",
    "MOST_EPSILONS",
    "MOST_POINTS",
    "MOST_POSITION_COUNTS",
    "ConfigError",
    "GraphLimits",
    "ProbeConfig",
    "check_writable_folder",
    "config_from_environment",
    "config_from_json",
    "config_from_mapping",
    "parse_object",
    "read_settings_argument",
]
