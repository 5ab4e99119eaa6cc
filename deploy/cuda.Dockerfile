# What the image with nvdiffrast is built on: Python 3.11, git, and CUDA's compiler of torch's major version.
#   docker build -f deploy/cuda.Dockerfile -t seqtex-cuda .
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu22.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git gpg-agent software-properties-common \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.11 -m venv /opt/python
ENV PATH=/opt/python/bin:$PATH
