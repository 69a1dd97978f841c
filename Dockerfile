# The scripts of this repository, for CPUs or for NVIDIA GPUs:
#   docker build --tag hf_convnextv2 .
#   docker build --tag hf_convnextv2:cuda --build-arg DEVICE=cuda .
# Both begin with the same small image: PyTorch's wheels for GPUs bring CUDA's libraries themselves.
ARG DEVICE=cpu
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS cpu
# PyTorch's own index has wheels for CPUs, which are a tenth of the size.
ENV TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"

FROM python:${PYTHON}-slim-bookworm AS cuda
ENV TORCH_INDEX=""
# Triton, which has the kernels for GPUs, compiles a few lines of C at the first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM ${DEVICE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# In a layer of their own: they are most of the image, and stay when the code changes.
# hadolint ignore=DL3013,SC2086
RUN pip install ${TORCH_INDEX} "torch>=2.13" "torchvision>=0.28"

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY hf_convnextv2 hf_convnextv2
COPY training training
COPY conversion conversion
# Any user may run it (`--user`): caches and runs go to folders that anybody may write to.
RUN pip install --editable ".[training,conversion]" \
    && useradd --create-home --uid 1000 runner \
    && mkdir --parents out /cache \
    && chmod 1777 out /cache
ENV HOME=/cache USER=runner

USER 1000
ENTRYPOINT ["python"]
CMD ["training/pretrain.py", "--help"]
