"""A worker process of Beam's runner on this machine: Beam's own, without its messages of every start."""

from __future__ import annotations

import logging


def main() -> None:
    """Serves the runner that started it until that one ends."""
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
