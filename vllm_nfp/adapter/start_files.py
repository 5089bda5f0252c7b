"""Checks files that the settings name, before anything of a server is started."""

from __future__ import annotations

from pathlib import Path

from vllm_nfp.config import ConfigError, ProbeConfig, check_writable_folder


def check_files(config: ProbeConfig) -> None:
    """Check that the output directory can be written, and that the files to start from can be used.

    Whether they are of the GPU and model that serve is not known yet.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    if config.output_dir is not None:
        check_writable_folder("--nfp-output-dir", config.output_dir)
    if config.hardware_file is not None:
        from vllm_nfp.principle.hardware import HardwareError
        from vllm_nfp.principle.hardware_file import read_hardware_file

        try:
            read_hardware_file(Path(config.hardware_file))
        except HardwareError as error:
            raise ConfigError(f"hardware_file: {error}") from None
    if config.start_profile is not None:
        from vllm_nfp.results.profile import ProfileError, load_profile

        try:
            load_profile(config.start_profile)
        except ProfileError as error:
            raise ConfigError(f"start_profile: {error}") from None
