# SPDX-License-Identifier: Apache-2.0
"""Makes touch points of vLLM's be missing, in every process that has this folder on its path: those that
`VLLM_SURGERY_TEST_LACKS` names, as an unknown vLLM may have moved them. Python imports a module of this name at its start.
"""

import os

try:
    from vllm_surgery.engine import touchpoints
except ImportError:  # Another Python than the tests'.
    pass
else:
    for name in filter(None, os.environ.get("VLLM_SURGERY_TEST_LACKS", "").split(",")):
        point = getattr(touchpoints, name)
        object.__setattr__(point, "path", f"{point.path}_moved")
