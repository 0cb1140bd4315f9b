# SPDX-License-Identifier: Apache-2.0
"""Makes Triton believe that it has a backend for CPUs, in every process that has this folder on its path.

vLLM takes its second model runner wherever Triton works. On a CPU it doesn't, but Triton's own interpreter
(``TRITON_INTERPRET=1``) runs that runner's kernels all the same. Python imports a module of this name at its start.
"""

import types

try:
    from triton.backends import backends
except ImportError:  # Another Python than the tests'.
    pass
else:
    backends.clear()
    backends["cpu"] = types.SimpleNamespace(driver=types.SimpleNamespace(is_active=lambda: True), compiler=None)
