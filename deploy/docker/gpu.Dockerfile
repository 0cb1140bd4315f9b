# SPDX-License-Identifier: Apache-2.0
# vllm-surgery in vLLM's own image for NVIDIA GPUs. Build in the root of the repository:
#   docker build -f deploy/docker/gpu.Dockerfile -t vllm-surgery:gpu .

# Tags can move: `python deploy/pin.py` writes the digests to build with.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.33.0

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/docker/build.lock build.lock
RUN python -m pip install --no-cache-dir --require-hashes --no-deps --requirement build.lock
COPY pyproject.toml README.md LICENSE ./
COPY vllm_surgery vllm_surgery
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${VLLM_IMAGE}
# What is in the image stays as it is: the plugin's requirements are met by vLLM's, but for the demo model's, which come
# by their hashes. Should anything else be missing, the last step fails, since it fetches nothing.
COPY deploy/docker/gpu.lock /opt/vllm-surgery/gpu.lock
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --require-hashes --no-deps --requirement /opt/vllm-surgery/gpu.lock \
    && python3 -m pip install --no-cache-dir --no-index "$(ls /wheels/*.whl)[demo]" \
    && useradd --uid 10001 --create-home surgeon && install --directory --owner surgeon /models
ENV VLLM_NO_USAGE_STATS=1
USER 10001
WORKDIR /home/surgeon
EXPOSE 8000
ENTRYPOINT ["vllm-surgery"]
CMD ["--help"]
