"""One logger, `quire`, quiet by default: warnings and errors only, unless QUIRE_LOG names another level.

Decides how lines of the C++ core reach Python's logging. Handlers are the application's business: none is installed.
"""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("quire")

# cpp/base/log.h: debug, info, warning, error.
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_forwarding = False


def _forward(level: int, message: str) -> None:
    logger.log(_LEVELS[level], message)


def forward_core_log() -> None:
    """Sends the C++ core's log lines to the logger; called whenever an engine is built, works once."""
    global _forwarding
    if _forwarding:
        return
    from quire import _quire

    level = (os.environ.get("QUIRE_LOG") or os.environ.get("VLLM_LOGGING_LEVEL") or "").upper()
    if level:
        if level not in logging.getLevelNamesMapping() if hasattr(logging, "getLevelNamesMapping") else False:
            raise ValueError(f"QUIRE_LOG={level!r} is no logging level; use DEBUG, INFO, WARNING or ERROR.")
        logger.setLevel(level)
        if not logger.hasHandlers():
            logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    elif logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    _quire.set_log_callback(_forward)
    _forwarding = True
