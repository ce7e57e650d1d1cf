"""Checkpoints: our folders, published files, and the way from one to the other."""

from sh2.checkpoint.conversion import Target, convert
from sh2.checkpoint.folder import model_hash
from sh2.checkpoint.loading import load, save_model
from sh2.checkpoint.source import Model, open_model

__all__ = ["Model", "Target", "convert", "load", "model_hash", "open_model", "save_model"]
