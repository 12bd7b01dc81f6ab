"""The controller's own log: one line per committed transition, key=value, to standard error."""

from __future__ import annotations

import logging
import sys

import structlog

# Silent until configured: a passing controller's transitions are shown by the verb itself, or not at all.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
log = structlog.get_logger()


def configure(verbose: bool = False) -> None:
    """For a controller."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=False),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
