# SPDX-License-Identifier: Apache-2.0
# vllm-surgery with vLLM for CPUs, to try it out. Build in the root of the repository:
#   docker build -f deploy/docker/cpu.Dockerfile -t vllm-surgery:cpu .

# Tags can move: `python deploy/pin.py` writes the digest to build with. Packages can too: where deploy/docker/cpu.lock is
# there, they are installed by its hashes. `deploy/lock.py` writes it, in the image of the stage `build`:
#   docker build -f deploy/docker/cpu.Dockerfile --target build -t vllm-surgery:cpu-build .
#   docker run --rm vllm-surgery:cpu-build python deploy/lock.py --venv /opt/venv > deploy/docker/cpu.lock
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

# The compiler is for torch.compile, which vLLM uses unless it is told to --enforce-eager.
FROM ${PYTHON_IMAGE} AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
WORKDIR /opt/vllm-surgery
COPY pyproject.toml README.md LICENSE ./
COPY deploy/install.py deploy/lock.py deploy/
COPY deploy/docker deploy/docker
COPY vllm_surgery vllm_surgery
ENV PIP_NO_CACHE_DIR=1
RUN python deploy/install.py --venv /opt/venv --engine cpu \
    $(if [ -f deploy/docker/cpu.lock ]; then echo --lock deploy/docker/cpu.lock; fi)

FROM base
RUN useradd --uid 10001 --create-home surgeon && install --directory --owner surgeon /models
COPY --from=build /opt/vllm-surgery /opt/vllm-surgery
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH VLLM_NO_USAGE_STATS=1
USER 10001
WORKDIR /home/surgeon
EXPOSE 8000
ENTRYPOINT ["vllm-surgery"]
CMD ["--help"]
