# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_surgery` is the same as `vllm-surgery`."""

import sys

from vllm_surgery.cli import main

sys.exit(main())
