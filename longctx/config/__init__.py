"""The settings of a run: one frozen RunConfig from defaults, a file, the environment, and flags."""

from longctx.config.load import load_config
from longctx.config.settings import SETTINGS, RunConfig, flag_name

__all__ = ["SETTINGS", "RunConfig", "flag_name", "load_config"]
