"""`python -m jaxrl_llm` is `jaxrl`."""

import sys

from jaxrl_llm import cli

sys.exit(cli.script())
