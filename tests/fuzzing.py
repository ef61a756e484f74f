"""How many examples the tests draw that damage files and tables at random: SHAZAM_FUZZ, which .ci/run sets."""

import os

EXAMPLES = int(os.environ.get("SHAZAM_FUZZ", "150"))
