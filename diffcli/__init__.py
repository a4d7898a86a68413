"""diffcli: train, sample and measure score-based diffusion models from the command line."""

__version__ = "0.1.0"
