#!/usr/bin/env bash
# Set up, and run the tests in two processes; further arguments go to pytest.

. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements-dev.txt
exec "$PYTHON" -m pytest --numprocesses 2 --dist worksteal "$@"
